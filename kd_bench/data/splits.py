"""What every source gives: a training set and a test set of equally large uint8 images, in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kd_bench.data.cache import Decoded
    from kd_bench.data.specs import DatasetSpec


@dataclass(frozen=True)
class Splits:
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
    def of(spec: DatasetSpec, train: Decoded, test: Decoded, class_names: tuple[str, ...], kind: int = 0) -> Splits:
        """What was decoded, with its labels of one kind; the images are not copied."""
        import torch

        return Splits(
            train_images=torch.from_numpy(train.images),
            train_labels=torch.from_numpy(train.labels[:, kind].copy()),
            test_images=torch.from_numpy(test.images),
            test_labels=torch.from_numpy(test.labels[:, kind].copy()),
            class_names=class_names,
            mean=spec.mean,
            std=spec.std,
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W) of the training images."""
        return tuple(self.train_images.shape[1:])

    def first(self, classes: int) -> Splits:
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

    def few(self, train_images: int | None, test_images: int | None) -> Splits:
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
