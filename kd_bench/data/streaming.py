"""Batches of a set whose images are decoded when they are needed, by any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from kd_bench.data.augment.crop_flip import Normalise, blank
from kd_bench.data.augment.timm_transforms import EvaluationTransform, Mixing, TrainTransform, undisturbed
from kd_bench.data.batch_order import Order
from kd_bench.data.decoding import BadImage
from kd_bench.data.file_dataset import FileDataset, Files
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError

#: Images that a worker decodes at a time, some 10 MB: so that all workers make a batch of thousands together, and few
#: batches lie in memory at once.
_CHUNK = 64


class _Wanted(NamedTuple):
    """What a worker is to decode."""

    epoch: int
    which: list[int]
    repeat: list[int]
    last: bool
    """Whether a batch ends here."""


class _Read(NamedTuple):
    """What a worker has decoded."""

    images: Tensor
    """(n, 3, H, W) uint8."""
    boxes: Tensor
    """(n, 4) int64: what is to be erased."""
    which: Tensor
    """(n,) int64: which images these are."""
    bad: list[tuple[int, str]]
    """Images that could not be decoded, and why."""
    failure: str
    """The sentence to end with; empty for none."""
    last: bool


class _Reader(MapDataset[_Read]):
    """Decodes. It has no state, so that it does not matter which worker decodes what.

    Args:
        files: The images.
        transform: What happens to them.
        skip: Whether to go on without those that cannot be decoded.
        replace: Whether others take their place then.
    """

    def __init__(
        self, files: Files, transform: TrainTransform | EvaluationTransform, *, skip: bool, replace: bool
    ) -> None:
        self.files = files
        self.transform = transform
        self.skip = skip
        self.replace = replace

    def __getitems__(self, wanted: _Wanted) -> _Read:
        """A chunk."""
        size = self.transform.size
        images = torch.empty(len(wanted.which), 3, size, size, dtype=torch.uint8)
        boxes = torch.zeros(len(wanted.which), 4, dtype=torch.int64)
        index: list[int] = []
        bad: list[tuple[int, str]] = []
        failure = ""
        with undisturbed():
            for first, repeat in zip(wanted.which, wanted.repeat, strict=True):
                try:
                    found = self._read(first, wanted.epoch, repeat, bad)
                except UserError as error:  # goes by way of the answer: what a worker raises comes with a traceback
                    failure = str(error)
                    break
                if found is not None:
                    shown, images[len(index)], boxes[len(index)] = found
                    index.append(shown)
        there = len(index)
        return _Read(images[:there], boxes[:there], torch.tensor(index, dtype=torch.int64), bad, failure, wanted.last)

    def _read(
        self, first: int, epoch: int, repeat: int, bad: list[tuple[int, str]]
    ) -> tuple[int, Tensor, Tensor] | None:
        """An image, or the one that takes its place but has its draws; None where it is left out."""
        for index in self._candidates(first):
            try:
                return index, *self.transform(self.files.read(index), epoch, first, repeat)
            except BadImage as error:
                bad.append((index, str(error)))
                if not self.skip:
                    place = self.files.path(index)
                    raise UserError(f"{place}: the image {error}; pipeline.corrupt: skip goes on without it") from error
        if self.replace:
            raise UserError(f"{self.files.home(first)}: has no image that can be decoded")
        return None

    def _candidates(self, first: int) -> Iterator[int]:
        yield first
        if self.replace:
            yield from self.files.others(first)


class _Plan:
    """What is to be decoded in the epoch to come, chunk by chunk: a batch sampler for torch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.steps: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[_Wanted]:
        for index, repeat in self.steps:
            parts = math.ceil(len(index) / _CHUNK)
            for part, (some, times) in enumerate(
                zip(index.tensor_split(parts), repeat.tensor_split(parts), strict=True), 1
            ):
                yield _Wanted(self.epoch, some.tolist(), times.tolist(), part == parts)


class _Stream:
    """What both loaders have in common: the workers, and the way to the device."""

    def __init__(
        self, listed: FileDataset, reader: _Reader, batch_size: int, workers: int, device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self.labels = reader.files.labels.to(self.device)
        self._files = reader.files
        self._corrupt: dict[int, str] = {}
        self._normalise = Normalise(listed.mean, listed.std, self.device)
        self._plan = _Plan()
        self._reader = reader
        self._workers = workers
        # Two batches under way, and at least two chunks a worker.
        self._ahead = max(2, math.ceil(2 * batch_size / (_CHUNK * workers))) if workers else None
        self._loader: DataLoader[_Read] | None = None

    @property
    def corrupt(self) -> dict[Path, str]:
        """The files that could not be decoded and why, of those that this process has come upon so far, sorted."""
        return {self._files.path(index): reason for index, reason in sorted(self._corrupt.items())}

    def close(self) -> None:
        """Ends the workers at once; another iteration would begin new ones."""
        self._loader = None

    def _read(self, epoch: int, steps: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each step the normalised images, the boxes to erase in them, and which images they are."""
        self._plan.epoch, self._plan.steps = epoch, steps
        parts: list[list[Tensor]] = []
        if self._loader is None:
            self._loader = DataLoader(
                self._reader,
                batch_sampler=self._plan,  # type: ignore[arg-type]  # not lists of numbers, but what the reader wants
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                num_workers=self._workers,
                prefetch_factor=self._ahead,
                persistent_workers=self._workers > 0,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # or it would draw from torch's global one
            )
        for read in self._loader:
            self._corrupt.update(read.bad)
            if read.failure:
                raise UserError(read.failure)
            parts.append([part.to(self.device, non_blocking=True) for part in read[:3]])
            if read.last:
                images, boxes, index = (
                    torch.cat(some) if len(some) > 1 else some[0] for some in zip(*parts, strict=True)
                )
                parts = []
                yield self._normalise(images), boxes, index


def _as_it_is(read: _Read) -> _Read:
    return read


class StreamLoader(_Stream):
    """Gives the training batches of one epoch each time it is iterated over, as ``InMemoryLoader`` does.

    An epoch is a function of (seed, epoch) alone, however many workers there are. What an image looks like before it is
    mixed is a function of (seed, epoch, image, repeat), and the same in any batch. All batches are full: the images
    left over in an epoch, others each time, are not used, as in timm. It can be iterated over once at a time.

    An image that cannot be decoded ends the training with its name when its turn comes. With ``corrupt: skip`` the next
    one of its class that can be takes its place in the epoch and its draws, and ``corrupt`` counts it: to look at all
    files beforehand would cost as much as an epoch.

    Args:
        listed: The set and its pipeline.
        batch_size: Images a step, of all processes together.
        micro_batch: Images that are mixed with one another, see ``Order``; None for all of the batch.
        seed: The trial's seed.
        device: Where the batches are made.
        workers: Processes that decode; 0 to decode in this one. They need room in shared memory, of two batches or two
            chunks of 64 images a worker, whichever is more.
        rank: The number of this process among those that train together.
        world_size: How many these are. Each has an equal part of every batch, and its ``index`` tells which; what they
            have together does not depend on how many they are.

    Raises:
        UserError: The batch is larger than the set.
        ValueError: The batch cannot be shared by so many processes.
    """

    def __init__(
        self,
        listed: FileDataset,
        *,
        batch_size: int,
        micro_batch: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        pipeline = listed.pipeline
        self._order = Order(
            seed, len(listed.train), batch_size, micro_batch or batch_size, pipeline.repeats, rank, world_size
        )
        if not len(self._order):
            raise UserError(f"batch_size: {batch_size} is more than the {self._order.length} images of an epoch")
        transform = TrainTransform(pipeline, listed.mean, seed)
        reader = _Reader(listed.train, transform, skip=pipeline.corrupt == "skip", replace=pipeline.corrupt == "skip")
        super().__init__(listed, reader, batch_size // world_size, workers, device)
        self.batch_size = batch_size
        self.epoch = self._begin = 0
        self._erases = pipeline.erase is not None
        self._mixing = Mixing(pipeline, listed.num_classes, seed)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Chooses the epoch, from 0, that the next iteration gives.

        Args:
            epoch: From 0.
            begin: Of so many first steps nothing is decoded; their batches are empty.
        """
        self.epoch, self._begin = epoch, begin

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self.epoch, self._begin)

    def _batches(self, epoch: int, begin: int) -> Iterator[Batch]:
        order = self._order
        in_batch = order.batch_size // order.group
        steps = list(zip(*order.epoch(epoch), strict=True))
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        for step in range(begin):
            yield Batch(nothing, nothing, nothing, epoch, step)
        for step, (images, boxes, index) in enumerate(self._read(epoch, steps[begin:]), begin):
            if self._erases:
                blank(images, boxes)
            pairs = zip(images.chunk(len(order.groups)), self.labels[index].chunk(len(order.groups)), strict=True)
            labels = [
                self._mixing(some, their, epoch, step * in_batch + group)
                for group, (some, their) in zip(order.groups, pairs, strict=True)
            ]
            yield Batch(images, torch.cat(labels), index, epoch, step)


class StreamTestLoader(_Stream):
    """Gives the test set: every image once, in its order, the last batch smaller where it must be.

    An image that cannot be decoded ends the test with its name; with ``corrupt: skip`` it is left out and counted by
    ``corrupt``, so that the images in the batches are to be counted, not those of the set.

    Args:
        listed: The set and its pipeline.
        batch_size: Images a step, of this process.
        device: As ``StreamLoader`` takes it.
        workers: As ``StreamLoader`` takes it.
        rank: The number of this process among those that test together.
        world_size: How many these are. Each takes every so-maniest image; some may have one less than others.
    """

    def __init__(
        self,
        listed: FileDataset,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        pipeline = listed.pipeline
        reader = _Reader(listed.test, EvaluationTransform(pipeline), skip=pipeline.corrupt == "skip", replace=False)
        super().__init__(listed, reader, batch_size, workers, device)
        self.batch_size = batch_size
        self.share = torch.arange(rank, len(listed.test), world_size)

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        steps = [(some, torch.zeros_like(some)) for some in self.share.split(self.batch_size)]
        for step, (images, _, index) in enumerate(self._read(0, steps)):
            if len(index):  # or else none of the batch could be decoded
                yield Batch(images, self.labels[index], index, 0, step)
