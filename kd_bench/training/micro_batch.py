"""Micro-batches: the parts of a batch that are computed one after another before the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kd_bench.types import Batch
from kd_bench.utils.distributed import rank


@dataclass(frozen=True)
class MicroBatch:
    """The images that a process computes at once: its whole part of the batch, or a micro-batch of it."""

    batch: Batch
    index: int = 0
    """Position among all micro-batches of the step, over all processes."""
    share: float = 1.0
    """Share of the process's part of the batch."""
    first: bool = True
    """Whether it is the process's first micro-batch of the step."""
    last: bool = True
    """Whether it is the process's last micro-batch of the step."""
    step_tensor: Tensor | None = None
    """Step within the epoch on the device, for recorded steps, in which a number would stay that of the recording."""

    @property
    def step(self) -> int | Tensor:
        """Step within the epoch, from 0."""
        return self.batch.step if self.step_tensor is None else self.step_tensor


def split_micro_batches(batch: Batch, micro_batch: int | None) -> Iterator[MicroBatch]:
    """Splits a process's part of a batch into micro-batches of this many images; None for one of all images.

    The last batch of an epoch may have other sizes: a rest that is smaller, or of one image, which joins the
    micro-batch before it, because batch normalisation cannot train on it.
    """
    images = len(batch.images)
    size = min(images, micro_batch or images)
    count, rest = divmod(images, size)
    count += rest > (1 if size > 1 else 0)
    for index in range(count):
        end = images if index == count - 1 else (index + 1) * size
        part = batch.rows(slice(index * size, end)) if count > 1 else batch
        yield MicroBatch(part, rank() * count + index, len(part.images) / images, index == 0, index == count - 1)


def micro_batch_stream(stream: str, index: int) -> str:
    """Returns the name of a random stream for the micro-batch with this index."""
    return f"{stream}/{index}" if index else stream
