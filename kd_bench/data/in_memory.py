"""Batches of a set that lies in memory: no workers, no PIL, a few tensor operations a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_bench.config.data import Augment
from kd_bench.data.augment import mixing, policies
from kd_bench.data.augment.crop_flip import (
    Draws,
    Normalise,
    blank,
    crop_and_flip,
    draw,
    draw_cutout,
    draw_erasing,
    view_count,
)
from kd_bench.data.augment.plugin import OwnAugment
from kd_bench.types import Batch
from kd_bench.utils import seeding

#: Pixel values (4 MiB, 1,365 images of CIFAR) that a policy changes at once where batches are smaller: operations that
#: one image in twenty has in common are not worth starting for 64 images.
_AHEAD = 2**22


@dataclass(frozen=True)
class _Epoch:
    """What an epoch's augmentation does with every sample, in the set's order."""

    moved: Draws | None
    choices: policies.Choices | None
    seed: int
    """Of this view of the images."""
    epoch: int
    blanks: tuple[Tensor, ...]
    mix: mixing.Mix | None
    views: Tensor | None
    """(N,) int64 on the CPU: the number of each sample's view, where crop and flip are all there is."""


class InMemoryLoader:
    """Gives the batches of one epoch each time it is iterated over.

    An epoch is a function of (seed, epoch) alone: iterating twice gives the same batches twice, and ``set_epoch``
    moves on. What a sample looks like in an epoch does not depend on the batch it falls into; one that it is mixed with
    looks there as it does by itself. All draws are made on the CPU, so that they are the same for every device, and
    each kind of augmentation has draws of its own, so that switching one on does not change another.

    The last batch may be smaller. When shuffling, a last batch of one single image is left out, because batch
    normalisation cannot train on it; which image that is changes from epoch to epoch. (A batch size of one is the
    user's own choice and keeps all.)

    Args:
        images: (N, C, H, W) uint8; a policy needs three channels. Moved to the device once; on the CPU they are not
            copied.
        labels: (N,) int64.
        batch_size: B.
        mean: Of the channels, for images scaled to 0..1.
        std: Of the channels, for images scaled to 0..1.
        device: Where the batches are made.
        augment: What happens to the images, where its None is none; None to leave them as they are.
        num_classes: K of the (B, K) labels of mixed images; needed where ``augment`` mixes.
        shuffle: A new order every epoch; otherwise the set's.
        seed: The trial's seed.
        view: Which view of the images this is: each has draws of its own, and all have the same order.

    Raises:
        ValueError: Sizes do not fit together, or ``num_classes`` is missing.
        UserError: The user's own augmentation is not there, or was changed since the trial was planned.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        num_classes: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        view: int = 0,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(f"{images.dtype} images {tuple(images.shape)} do not fit labels {tuple(labels.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be positive")
        self.augment = augment or Augment()
        self.mixes = self.augment.mixup is not None or self.augment.cutmix is not None
        if self.mixes and num_classes is None:
            raise ValueError("mixed labels need num_classes")
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.shuffle = shuffle
        self.seed = seed
        self.view = view
        self.epoch = 0
        self._normalise = Normalise(mean, std, self.device)
        self._own_augment = OwnAugment(self.augment.own, self.augment.own_source) if self.augment.own else None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0, that the next iteration gives."""
        self.epoch = epoch

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded, as loaders that decode have them; none here."""
        return {}

    def close(self) -> None:
        """Does nothing; a loader with workers ends them."""

    @property
    def views(self) -> int:
        """How many views an image has, where crop and flip are all that happens to it; otherwise 0."""
        only = Augment(crop=self.augment.crop, flip=self.augment.flip)
        return view_count(self.augment.crop or 0) if self.augment == only and (only.crop or only.flip) else 0

    def __len__(self) -> int:
        """Number of batches."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > (1 if self.shuffle else 0))

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self._order(self.epoch), self._draw(self.epoch))

    def _order(self, epoch: int) -> Tensor:
        """The places of an epoch's images, (at most ``len(self)`` times the batch size,) int64, batch by batch."""
        size = len(self.images)
        if self.shuffle:
            order = torch.randperm(size, generator=seeding.generator(self.seed, seeding.ORDER, epoch))
        else:
            order = torch.arange(size)
        return order[: len(self) * self.batch_size]

    def _draw(self, epoch: int) -> _Epoch:
        augment, device = self.augment, self.device
        seed = seeding.derive(self.seed, f"{seeding.VIEW}/{self.view}") if self.view else self.seed
        size, _, height, width = self.images.shape
        moved, mix, views, blanks = None, None, None, []
        if augment.crop or augment.flip:
            moved = draw(seed, epoch, size, augment.crop or 0)
            if not augment.flip:
                moved = Draws(moved.offsets, torch.zeros_like(moved.flips))
            views = moved.numbers(augment.crop or 0)
            moved = moved.to(device)
        if augment.cutout:
            blanks.append(draw_cutout(seed, epoch, size, augment.cutout, height, width).to(device))
        if augment.erase:
            blanks.append(draw_erasing(seed, epoch, size, augment.erase, height, width).to(device))
        if self.mixes:
            mix = mixing.draw(seed, epoch, size, height, width, mixup=augment.mixup, cutmix=augment.cutmix)
        choices = policies.draw(augment, seed, epoch, size, height, width)
        return _Epoch(moved, choices, seed, epoch, tuple(blanks), mix, views if self.views else None)

    def _batches(self, order: Tensor, drawn: _Epoch) -> Iterator[Batch]:
        views = self._views(order, drawn)
        numbers = None if drawn.views is None else order * self.views + drawn.views[order]
        mix = partners = None
        if drawn.mix is not None:
            partners = self._views(drawn.mix.partner[order], drawn)
            mix = drawn.mix.to(self.device)
        order = order.to(self.device)
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images, labels = next(views), self.labels[index]
            if mix is not None and partners is not None and self.num_classes is not None:
                here = mix.of(index)
                images = mixing.mix_images(images, next(partners), here)
                labels = mixing.mix_labels(labels, self.labels[here.partner], here, self.num_classes)
            seen = None if numbers is None else numbers[step * self.batch_size : (step + 1) * self.batch_size]
            yield Batch(images, labels, index, drawn.epoch, step, seen)

    def _changed(self, images: Tensor, places: Tensor, drawn: _Epoch, step: int) -> Tensor:
        """As the user's own augmentation leaves them."""
        if self._own_augment is None:
            return images
        return self._own_augment(images, places.tolist(), drawn.seed, drawn.epoch, step)

    def _views(self, order: Tensor, drawn: _Epoch) -> Iterator[Tensor]:
        """What these samples look like before they are mixed, a batch at a time: (B, C, H, W) float."""
        there = order.to(self.device)
        at_once = self.batch_size
        if drawn.choices is not None:
            at_once *= max(1, _AHEAD // (self.batch_size * self.images.shape[1:].numel()))
        for start in range(0, len(order), at_once):
            part = there[start : start + at_once]
            pictures = self.images.index_select(0, part)  # copies image by image; indexing copies pixel by pixel
            if drawn.moved is not None:
                pictures = crop_and_flip(pictures, drawn.moved.of(part), self.augment.crop or 0)
            if drawn.choices is not None:
                steps = drawn.choices.steps[order[start : start + at_once]]
                pictures = policies.apply(pictures, steps, drawn.choices.operations)
            batches = zip(part.split(self.batch_size), pictures.split(self.batch_size), strict=True)
            for step, (index, few) in enumerate(batches, start // self.batch_size):
                places = order[step * self.batch_size : (step + 1) * self.batch_size]
                images = self._normalise(self._changed(few, places, drawn, step))
                for boxes in drawn.blanks:
                    images = blank(images, boxes[index])
                yield images
