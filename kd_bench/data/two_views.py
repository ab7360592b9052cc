"""Two views of the same images in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.types import Batch


class TwoViews:
    """Batches of 2 B images: first B images, then the same ones, in the same order, as another loader shows them.

    Args:
        first: Gives the first view.
        second: The second: a loader with the same images, seed and batch size, and another ``view``.
    """

    def __init__(self, first: InMemoryLoader, second: InMemoryLoader) -> None:
        self.first, self.second = first, second

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0, that the next iteration gives."""
        self.first.set_epoch(epoch)
        self.second.set_epoch(epoch)

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded; none here."""
        return {}

    def close(self) -> None:
        """Does nothing; a loader with workers ends them."""

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.first)

    def __iter__(self) -> Iterator[Batch]:
        for one, other in zip(self.first, self.second, strict=True):
            yield Batch(
                torch.cat([one.images, other.images]),
                torch.cat([one.labels, other.labels]),
                torch.cat([one.index, other.index]),
                one.epoch,
                one.step,
            )
