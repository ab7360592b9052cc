"""Two views of the same images in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.types import Batch


class _PairedLoaders:
    """Two loaders with the same order of the images.

    Args:
        first, second: Loaders with the same images, seed and batch size, and different ``view``.
    """

    def __init__(self, first: InMemoryLoader, second: InMemoryLoader) -> None:
        self.first, self.second = first, second

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.first.set_epoch(epoch)
        self.second.set_epoch(epoch)

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded; none here."""
        return {}

    def close(self) -> None:
        """Does nothing, because there are no workers."""

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.first)


class TwoViews(_PairedLoaders):
    """Yields batches of 2 B images: B images, then the same images in the same order, augmented by another loader."""

    def __iter__(self) -> Iterator[Batch]:
        for first, second in zip(self.first, self.second, strict=True):
            yield Batch(
                torch.cat([first.images, second.images]),
                torch.cat([first.labels, second.labels]),
                torch.cat([first.index, second.index]),
                first.epoch,
                first.step,
            )


class SecondView(_PairedLoaders):
    """Yields the batches of the first loader, with the images of the second one as ``second_images``."""

    def __iter__(self) -> Iterator[Batch]:
        for first, second in zip(self.first, self.second, strict=True):
            yield replace(first, second_images=second.images)
