"""What every source gives: a training set and a test set of equally large uint8 images, in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Decoded


@dataclass(frozen=True)
class ArrayDataset:
    """A data set in memory.

    On the CPU the images may be a copy-on-write map of a cache file: processes share its pages, and whoever writes into
    them gets a private copy.
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
    """One a class, in the labels' order."""
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""

    @staticmethod
    def of(
        spec: DatasetSpec, train: Decoded, test: Decoded, class_names: tuple[str, ...], kind: int = 0
    ) -> ArrayDataset:
        """What was decoded, with its labels of one kind; the images are not copied."""
        import torch

        return ArrayDataset(
            train_images=torch.from_numpy(train.images),
            train_labels=torch.from_numpy(train.labels[:, kind].copy()),
            test_images=torch.from_numpy(test.images),
            test_labels=torch.from_numpy(test.labels[:, kind].copy()),
            class_names=class_names,
            mean=spec.mean,
            std=spec.std,
        )

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
        """A data set from arrays or tensors.

        Args:
            train_images: (N, C, H, W) uint8; one channel is repeated to three, more than three are refused.
            train_labels: (N,) whole numbers from 0.
            test_images: (M, C, H, W) uint8.
            test_labels: (M,) whole numbers from 0.
            class_names: One a class; by default their numbers, as far as the labels go.
            mean: Of the channels, for images scaled to 0..1; by default that of all pixels of the training images.
            std: As ``mean``.

        Raises:
            ValueError: Shapes or types are others, or a label has no class; in a sentence.
        """
        images = [_images(one, name) for one, name in ((train_images, "train_images"), (test_images, "test_images"))]
        labels = [_labels(one, name) for one, name in ((train_labels, "train_labels"), (test_labels, "test_labels"))]
        if class_names is None:
            class_names = [str(number) for number in range(1 + max(int(one.max()) for one in labels))]
        if mean is None or std is None:
            pixels = images[0].transpose(0, 1).flatten(1).double() / 255
            mean = mean or tuple(pixels.mean(1).tolist())
            std = std or tuple(pixels.std(1, correction=0).clamp_min(1 / 255).tolist())
        splits = ArrayDataset(images[0], labels[0], images[1], labels[1], tuple(class_names), mean, std)
        splits.check()
        return splits

    def check(self) -> None:
        """Makes sure that all is as the fields say.

        Raises:
            ValueError: It is not; in a sentence.
        """
        import torch

        shape = tuple(self.train_images.shape[1:])
        for images, labels, which in (
            (self.train_images, self.train_labels, "train"),
            (self.test_images, self.test_labels, "test"),
        ):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
                raise ValueError(
                    f"{which}_images should be (N, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}"
                )
            if tuple(images.shape[1:]) != shape or shape[1] != shape[2]:
                raise ValueError(f"all images should be squares of one size; some are {tuple(images.shape[2:])}")
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{which}_labels should be ({len(images)},) whole numbers, not {tuple(labels.shape)} {labels.dtype}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
                raise ValueError(
                    f"{which}_labels should be from 0 to {self.num_classes - 1} for {self.num_classes} class names, "
                    f"and go from {int(labels.min())} to {int(labels.max())}"
                )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(one > 0 for one in self.std):
            raise ValueError(f"mean and std should be three numbers each, std above 0, not {self.mean} and {self.std}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W) of the training images."""
        return tuple(self.train_images.shape[1:])

    def first(self, classes: int) -> ArrayDataset:
        """Only the images of the first ``classes`` classes, in the order they had. Mean and std stay."""
        if classes == self.num_classes:
            return self  # and so keeps sharing the pages of the cache file
        train, test = self.train_labels < classes, self.test_labels < classes
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
            class_names=self.class_names[:classes],
        )

    def few(self, train_images: int | None, test_images: int | None) -> ArrayDataset:
        """Only so many images, evenly over the classes and in the order they had; None keeps all. Mean and std stay.

        Of each class those are taken that come first, and where the classes cannot have equally many, the first classes
        have one more. The choice depends on no seed.
        """
        train, test = evenly(self.train_labels, train_images), evenly(self.test_labels, test_images)
        few = self
        if train is not None:
            few = replace(few, train_images=self.train_images[train], train_labels=self.train_labels[train])
        if test is not None:
            few = replace(few, test_images=self.test_images[test], test_labels=self.test_labels[test])
        return few


def evenly(labels: Tensor, wanted: int | None) -> Tensor | None:
    """The places of ``wanted`` images as ``few`` chooses them, rising; None where all are kept."""
    if wanted is None or wanted >= len(labels):
        return None
    # An image's place among those of its class; images of the same place are taken class by class.
    by_class = labels.argsort(stable=True)
    firsts = labels.bincount().cumsum(0) - labels.bincount()
    place = labels.new_empty(len(labels))
    place[by_class] = labels.new_tensor(range(len(labels))) - firsts[labels[by_class]]
    order = (place * (int(labels.max()) + 1) + labels).argsort(stable=True)
    return order[:wanted].sort().values


def _images(given: ArrayLike | Tensor, name: str) -> Tensor:
    import torch

    images = torch.as_tensor(given)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"{name} should be (N, 1 or 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    return images.contiguous()


def _labels(given: ArrayLike | Tensor, name: str) -> Tensor:
    import torch

    labels = torch.as_tensor(given)
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1 or not len(labels):
        raise ValueError(f"{name} should be (N,) whole numbers, not {tuple(labels.shape)} {labels.dtype}")
    return labels.to(torch.int64).contiguous()
