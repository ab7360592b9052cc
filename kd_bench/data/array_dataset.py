"""A data set in memory: training and test images of one size, as uint8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kd_bench.utils import seeding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Decoded
    from kd_bench.data.image_digest import ImageRecord


@dataclass(frozen=True)
class ArrayDataset:
    """A data set in memory.

    On the CPU the images may be a copy-on-write map of a cache file: processes share its pages, and a process that
    writes into them gets a private copy.
    """

    train_images: Tensor
    """(N, 3, H, W) uint8, contiguous."""
    train_labels: Tensor
    """(N,) int64, from 0 to ``num_classes`` - 1."""
    test_images: Tensor
    """(M, 3, H, W) uint8, contiguous."""
    test_labels: Tensor
    """(M,) int64."""
    class_names: tuple[str, ...]
    """One per class, in the labels' order."""
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    train_digests: Tensor | None = None
    """(N, 16) uint8: digests of the training images, if they are known; see ``image_digest.digest_each``."""
    test_digests: Tensor | None = None
    """(M, 16) uint8."""
    holdout: ArrayDataset | None = None
    """The images that are held out, as the test images of a data set; None if there are none."""

    @staticmethod
    def from_decoded(
        spec: DatasetSpec, train: Decoded, test: Decoded, class_names: tuple[str, ...], kind: int = 0
    ) -> ArrayDataset:
        """Makes a data set of decoded splits, with the labels of one kind; the images are not copied."""
        import torch

        train_images, test_images = torch.from_numpy(train.images), torch.from_numpy(test.images)
        train_labels, test_labels = (torch.from_numpy(split.labels[:, kind].copy()) for split in (train, test))
        of_train, of_test = (
            None if split.digests is None else torch.from_numpy(split.digests) for split in (train, test)
        )
        splits = train_images, train_labels, test_images, test_labels
        return ArrayDataset(*splits, class_names, spec.mean, spec.std, of_train, of_test)

    @staticmethod
    def from_arrays(
        train_images: ArrayLike | Tensor,
        train_labels: ArrayLike | Tensor,
        test_images: ArrayLike | Tensor,
        test_labels: ArrayLike | Tensor,
        class_names: Sequence[str] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> ArrayDataset:
        """Makes a data set of arrays or tensors.

        Args:
            train_images: (N, C, H, W) uint8; one channel is repeated to three, more than three are refused.
            train_labels: (N,) whole numbers from 0.
            test_images: (M, C, H, W) uint8.
            test_labels: (M,) whole numbers from 0.
            class_names: One per class; by default the numbers up to the largest label.
            mean: Of the channels, for images scaled to 0..1; by default that of all pixels of the training images.
            std: As ``mean``.

        Raises:
            ValueError: A shape or type is wrong, or a label has no class; in one sentence.
        """
        images = [_images(train_images, "train_images"), _images(test_images, "test_images")]
        labels = [_labels(train_labels, "train_labels"), _labels(test_labels, "test_labels")]
        if class_names is None:
            class_names = [str(number) for number in range(1 + max(int(split.max()) for split in labels))]
        if mean is None or std is None:
            mean_of_pixels, std_of_pixels = channel_statistics(images[0])
            mean, std = mean or mean_of_pixels, std or std_of_pixels
        dataset = ArrayDataset(images[0], labels[0], images[1], labels[1], tuple(class_names), mean, std)
        dataset.check()
        return dataset

    def check(self) -> None:
        """Checks shapes, types and values of all fields.

        Raises:
            ValueError: One is wrong; in one sentence.
        """
        import torch

        shape = tuple(self.train_images.shape[1:])
        for images, labels, split in (
            (self.train_images, self.train_labels, "train"),
            (self.test_images, self.test_labels, "test"),
        ):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
                raise ValueError(
                    f"{split}_images should be (N, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}"
                )
            if tuple(images.shape[1:]) != shape or shape[1] != shape[2]:
                raise ValueError(f"all images should be squares of one size; some are {tuple(images.shape[2:])}")
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{split}_labels should be ({len(images)},) whole numbers, not {tuple(labels.shape)} {labels.dtype}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
                raise ValueError(
                    f"{split}_labels should be from 0 to {self.num_classes - 1} for {self.num_classes} class names, "
                    f"and go from {int(labels.min())} to {int(labels.max())}"
                )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(f"mean and std should be three numbers each, std above 0, not {self.mean} and {self.std}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W) of the training images."""
        return tuple(self.train_images.shape[1:])

    @cached_property
    def record(self) -> ImageRecord:
        """Digests of the pixels and labels."""
        from kd_bench.data.image_digest import digest_each, image_record

        splits = (
            (digest_each(images.contiguous().numpy()) if digests is None else digests.numpy(), labels.numpy())
            for images, labels, digests in (
                (self.train_images, self.train_labels, self.train_digests),
                (self.test_images, self.test_labels, self.test_digests),
            )
        )
        return image_record("pixels", list(splits), self.image_shape)

    def take_classes(self, count: int) -> ArrayDataset:
        """Returns the images of the first ``count`` classes, in their order. Mean and std stay."""
        if count == self.num_classes:
            return self  # so that the images still share the pages of the cache file
        subset = self._select(self.train_labels < count, self.test_labels < count)
        return replace(subset, class_names=self.class_names[:count])

    def subset(self, train_images: int | None, test_images: int | None) -> ArrayDataset:
        """Returns the given numbers of images, balanced over the classes and in their order; None keeps all.

        Mean and std stay. See ``balanced_indices``.
        """
        train = balanced_indices(self.train_labels, train_images)
        return self._select(train, balanced_indices(self.test_labels, test_images))

    def hold_out(self, count: int) -> ArrayDataset:
        """Returns the data set without ``count`` of its training images, which become ``holdout``.

        They are drawn evenly over the classes, by a draw that depends on nothing but their number and the labels.
        """
        held_out = drawn_indices(self.train_labels, count)
        is_trained_on = mask_without(len(self.train_labels), held_out)
        holdout = replace(
            self,
            test_images=self.train_images[held_out].contiguous(),
            test_labels=self.train_labels[held_out],
            test_digests=None if self.train_digests is None else self.train_digests[held_out],
        )
        return replace(self._select(is_trained_on, None), holdout=holdout)

    def _select(self, train: Tensor | None, test: Tensor | None) -> ArrayDataset:
        """Returns the images with these indices or in these masks; None keeps all."""
        fields = {}
        for split, rows in (("train", train), ("test", test)):
            for name in (f"{split}_images", f"{split}_labels", f"{split}_digests"):
                values = getattr(self, name)
                if rows is not None and values is not None:
                    fields[name] = values[rows]
        return replace(self, **fields) if fields else self


def channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns the mean and the standard deviation of each channel, for images scaled to 0..1.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        Mean and standard deviation (of the population, at least 1 / 255), three numbers each.
    """
    import torch

    # Images as floats would need eight times their memory; the counts of 256 values say the same.
    counts = torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)]).double()
    values = torch.arange(256, dtype=torch.double) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def balanced_indices(labels: Tensor, count: int | None) -> Tensor | None:
    """Returns the indices of ``count`` images, balanced over the classes, in rising order; None keeps all images.

    The first images of each class are taken. If ``count`` is no multiple of the number of classes, the first classes
    have one image more. The choice depends on no seed.
    """
    if count is None or count >= len(labels):
        return None
    # Rank of an image among those of its class; images of equal rank are taken class by class.
    by_class = labels.argsort(stable=True)
    first_of_class = labels.bincount().cumsum(0) - labels.bincount()
    rank = labels.new_empty(len(labels))
    rank[by_class] = labels.new_tensor(range(len(labels))) - first_of_class[labels[by_class]]
    order = (rank * (int(labels.max()) + 1) + labels).argsort(stable=True)
    return order[:count].sort().values


def drawn_indices(labels: Tensor, count: int) -> Tensor:
    """Returns the indices of ``count`` images, drawn by name and balanced over the classes, in rising order."""
    import torch

    order = torch.randperm(len(labels), generator=seeding.generator(0, seeding.HOLDOUT))
    rows = balanced_indices(labels[order], count)
    return order.sort().values if rows is None else order[rows].sort().values


def mask_without(size: int, left_out: Tensor) -> Tensor:
    """Returns a mask, (size,) bool, that is false at the given indices."""
    import torch

    mask = torch.ones(size, dtype=torch.bool)
    mask[left_out] = False
    return mask


def _images(array: ArrayLike | Tensor, name: str) -> Tensor:
    import torch

    images = torch.as_tensor(array)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"{name} should be (N, 1 or 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    return images.contiguous()


def _labels(array: ArrayLike | Tensor, name: str) -> Tensor:
    import torch

    labels = torch.as_tensor(array)
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1 or not len(labels):
        raise ValueError(f"{name} should be (N,) whole numbers, not {tuple(labels.shape)} {labels.dtype}")
    return labels.to(torch.int64).contiguous()
