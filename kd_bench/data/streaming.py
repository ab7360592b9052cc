"""Loads batches of a set whose images are decoded when they are needed, in any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from kd_bench.data.augment.crop_flip import Normalise, zero_boxes
from kd_bench.data.augment.timm_transforms import EvaluationTransform, TimmMixup, TrainTransform, preserve_rng_state
from kd_bench.data.batch_order import BatchOrder
from kd_bench.data.decoding import BadImage
from kd_bench.data.file_dataset import FileDataset, Files
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError

#: Images that a worker decodes at a time, some 10 MB: so that all workers together make a batch of thousands, and few
#: batches are in memory at once.
_CHUNK = 64


class _ChunkRequest(NamedTuple):
    """The images that a worker decodes at a time."""

    epoch: int
    indices: list[int]
    repeats: list[int]
    last: bool
    """Whether a batch ends here."""


class _Chunk(NamedTuple):
    """The images that a worker has decoded."""

    images: Tensor
    """(n, 3, H, W) uint8."""
    boxes: Tensor
    """(n, 4) int64: boxes to erase."""
    indices: Tensor
    """(n,) int64."""
    bad: list[tuple[int, str]]
    """Images that could not be decoded, and the reasons."""
    error: str
    """Message of the error to raise; empty for none."""
    last: bool


@dataclass(frozen=True)
class _ChunkDecoder(MapDataset[_Chunk]):
    """Decodes chunks. It has no state, so that any worker can decode any chunk."""

    files: Files
    transform: TrainTransform | EvaluationTransform
    skip: bool
    """Whether to continue without images that cannot be decoded."""
    replace: bool
    """Whether to take another image of the class instead."""

    def __getitems__(self, request: _ChunkRequest) -> _Chunk:
        """Decodes a chunk."""
        size = self.transform.size
        images = torch.empty(len(request.indices), 3, size, size, dtype=torch.uint8)
        boxes = torch.zeros(len(request.indices), 4, dtype=torch.int64)
        indices: list[int] = []
        bad: list[tuple[int, str]] = []
        message = ""
        with preserve_rng_state():
            for wanted, repeat in zip(request.indices, request.repeats, strict=True):
                try:
                    decoded = self._decode(wanted, request.epoch, repeat, bad)
                except UserError as error:  # returned, because an error raised in a worker comes with a traceback
                    message = str(error)
                    break
                if decoded is not None:
                    index, images[len(indices)], boxes[len(indices)] = decoded
                    indices.append(index)
        n = len(indices)
        return _Chunk(images[:n], boxes[:n], torch.tensor(indices, dtype=torch.int64), bad, message, request.last)

    def _decode(
        self, wanted: int, epoch: int, repeat: int, bad: list[tuple[int, str]]
    ) -> tuple[int, Tensor, Tensor] | None:
        """Returns an image, or its replacement with the same random numbers; None if the image is left out."""
        for index in self._candidates(wanted):
            try:
                return index, *self.transform(self.files.read(index), epoch, wanted, repeat)
            except BadImage as error:
                bad.append((index, str(error)))
                if not self.skip:
                    path = self.files.path(index)
                    raise UserError(f"{path}: the image {error}; pipeline.corrupt: skip goes on without it") from error
        if self.replace:
            raise UserError(f"{self.files.describe_class(wanted)}: has no image that can be decoded")
        return None

    def _candidates(self, wanted: int) -> Iterator[int]:
        yield wanted
        if self.replace:
            yield from self.files.same_class(wanted)


class _ChunkSampler:
    """The chunks of the next epoch: a batch sampler for torch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.steps: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[_ChunkRequest]:
        for step in self.steps:
            count = math.ceil(len(step[0]) / _CHUNK)
            chunks = zip(*(tensor.tensor_split(count) for tensor in step), strict=True)
            for number, (index, repeat) in enumerate(chunks, 1):
                yield _ChunkRequest(self.epoch, index.tolist(), repeat.tolist(), number == count)


class _StreamBase:
    """The workers and the copies to the device, for both loaders."""

    def __init__(
        self, dataset: FileDataset, decoder: _ChunkDecoder, batch_size: int, workers: int, device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self.labels = decoder.files.labels.to(self.device)
        self._corrupt: dict[int, str] = {}
        self._normalise = Normalise(dataset.mean, dataset.std, self.device)
        self._sampler = _ChunkSampler()
        self._decoder = decoder
        self._workers = workers
        # Two batches in preparation, and at least two chunks per worker.
        self._prefetch = max(2, math.ceil(2 * batch_size / (_CHUNK * workers))) if workers else None
        self._loader: DataLoader[_Chunk] | None = None

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded so far in this process, with the reasons, sorted."""
        return {self._decoder.files.path(index): reason for index, reason in sorted(self._corrupt.items())}

    def close(self) -> None:
        """Ends the workers at once; another iteration starts new ones."""
        self._loader = None

    def _read(self, epoch: int, steps: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields for each step the normalised images, the boxes to erase in them, and their indices."""
        self._sampler.epoch, self._sampler.steps = epoch, steps
        if self._loader is None:
            self._loader = DataLoader(
                self._decoder,
                batch_sampler=self._sampler,  # type: ignore[arg-type]  # not lists of numbers, but requests
                collate_fn=_identity,  # type: ignore[arg-type]
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                persistent_workers=self._workers > 0,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else it would draw from torch's global generator
            )
        chunks: list[list[Tensor]] = []
        for chunk in self._loader:
            self._corrupt.update(chunk.bad)
            if chunk.error:
                raise UserError(chunk.error)
            chunks.append([tensor.to(self.device, non_blocking=True) for tensor in chunk[:3]])
            if chunk.last:
                images, boxes, index = (
                    torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True)
                )
                chunks = []
                yield self._normalise(images), boxes, index


def _identity(chunk: _Chunk) -> _Chunk:
    return chunk


class StreamLoader(_StreamBase):
    """Yields the training batches of one epoch each time it is iterated over, as ``InMemoryLoader`` does.

    An epoch is a function of (seed, epoch) alone, however many workers there are. An image before mixing is a function
    of (seed, epoch, image, repeat), and the same in any batch. All batches are full: the images left over in an epoch,
    others each time, are not used, as in timm. Only one iteration can run at a time.

    An image that cannot be decoded ends the training with an error that names it. With ``corrupt: skip`` the next image
    of its class that can be decoded replaces it, with the same random numbers, and ``corrupt`` counts it. The files are
    not checked beforehand, because that would cost as much as an epoch.

    Args:
        dataset: The set and its pipeline.
        batch_size: Images per step, of all processes together.
        micro_batch: Group size of ``BatchOrder``: images that are mixed with one another; None for the whole batch.
        seed: The trial's seed.
        device: Where the batches are made.
        workers: Processes that decode; 0 to decode in this one. They need shared memory for two batches or for two
            chunks of 64 images per worker, whichever is more.
        rank: Index of this process among those that train together.
        world_size: Number of these processes. Each has an equal part of every batch; all together have the same images
            whatever their number.

    Raises:
        UserError: The batch is larger than the set.
        ValueError: The batch cannot be shared by this number of processes.
    """

    def __init__(
        self,
        dataset: FileDataset,
        *,
        batch_size: int,
        micro_batch: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        pipeline = dataset.pipeline
        self._order = BatchOrder(
            seed, len(dataset.train), batch_size, micro_batch or batch_size, pipeline.repeats, rank, world_size
        )
        if not len(self._order):
            raise UserError(f"batch_size: {batch_size} is more than the {self._order.epoch_size} images of an epoch")
        transform = TrainTransform(pipeline, dataset.mean, seed)
        skip = pipeline.corrupt == "skip"
        decoder = _ChunkDecoder(dataset.train, transform, skip, replace=skip)
        super().__init__(dataset, decoder, batch_size // world_size, workers, device)
        self.batch_size = batch_size
        self.epoch = self._begin = 0
        self._erases = pipeline.erase is not None
        self._mix = TimmMixup(pipeline, dataset.num_classes, seed)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Sets the epoch of the next iteration.

        Args:
            epoch: From 0.
            begin: First step whose images are decoded; the batches before it are empty.
        """
        self.epoch, self._begin = epoch, begin

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self.epoch, self._begin)

    def _batches(self, epoch: int, begin: int) -> Iterator[Batch]:
        order = self._order
        steps = list(zip(*order.epoch(epoch), strict=True))
        empty = torch.empty(0, dtype=torch.int64, device=self.device)
        for step in range(begin):
            yield Batch(empty, empty, empty, epoch, step)
        for step, (images, boxes, index) in enumerate(self._read(epoch, steps[begin:]), begin):
            if self._erases:
                zero_boxes(images, boxes)
            groups = zip(
                order.groups,
                images.chunk(len(order.groups)),
                self.labels[index].chunk(len(order.groups)),
                strict=True,
            )
            labels = [
                self._mix(pixels, targets, epoch, step * order.group_count + group) for group, pixels, targets in groups
            ]
            yield Batch(images, torch.cat(labels), index, epoch, step)


class StreamTestLoader(_StreamBase):
    """Yields the test set: every image once, in its order, the last batch smaller if necessary.

    An image that cannot be decoded ends the test with an error that names it. With ``corrupt: skip`` it is left out and
    counted by ``corrupt``: then the batches have fewer images than the set.

    Args:
        dataset: The set and its pipeline.
        batch_size: Images per step, of this process.
        device, workers: As for ``StreamLoader``.
        rank: Index of this process among those that test together.
        world_size: Number of these processes, R. Each takes every R-th image; some may have one less.
    """

    def __init__(
        self,
        dataset: FileDataset,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        transform, skip = EvaluationTransform(dataset.pipeline), dataset.pipeline.corrupt == "skip"
        decoder = _ChunkDecoder(dataset.test, transform, skip, replace=False)
        super().__init__(dataset, decoder, batch_size, workers, device)
        self.batch_size = batch_size
        self._indices = torch.arange(rank, len(dataset.test), world_size)

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        steps = [(index, torch.zeros_like(index)) for index in self._indices.split(self.batch_size)]
        for step, (images, _, index) in enumerate(self._read(0, steps)):
            if len(index):  # empty if no image of the batch could be decoded
                yield Batch(images, self.labels[index], index, 0, step)
