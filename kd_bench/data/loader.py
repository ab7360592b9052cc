"""Batches of a set that lies in memory: no workers, no PIL, a few tensor operations a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kd_bench import seeding
from kd_bench.data.augment import Draws, Normalise, crop_and_flip, draw
from kd_bench.types import Batch


class InMemoryLoader:
    """Gives the batches of one epoch each time it is iterated over.

    An epoch is a function of (seed, epoch) alone: iterating twice gives the same batches twice, and ``set_epoch``
    moves on. What a sample looks like in an epoch does not depend on the batch it falls into. All draws are made on
    the CPU, so that they are the same for every device.

    The last batch may be smaller. When shuffling, a last batch of one single image is left out, because batch
    normalisation cannot train on it; which image that is changes from epoch to epoch. (A batch size of one is the
    user's own choice and keeps all.)

    Args:
        images: (N, C, H, W) uint8. Moved to the device once; on the CPU they are not copied.
        labels: (N,) int64.
        batch_size: B.
        mean: Of the channels, for images scaled to 0..1.
        std: Of the channels, for images scaled to 0..1.
        device: Where the batches are made.
        crop: Pixels of black padding on each side of a random crop; 0 for none.
        flip: Mirrors every image with probability 1/2.
        shuffle: A new order every epoch; otherwise the set's.
        seed: The trial's seed.

    Raises:
        ValueError: Sizes do not fit together.
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
        crop: int = 0,
        flip: bool = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(f"{images.dtype} images {tuple(images.shape)} do not fit labels {tuple(labels.shape)}")
        if batch_size < 1 or crop < 0:
            raise ValueError(f"batch_size {batch_size} must be positive and crop {crop} not negative")
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.batch_size = batch_size
        self.crop = crop
        self.flip = flip
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._normalise = Normalise(mean, std, self.device)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0, that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > (1 if self.shuffle else 0))

    def __iter__(self) -> Iterator[Batch]:
        size = len(self.images)
        if self.shuffle:
            order = torch.randperm(size, generator=seeding.generator(self.seed, seeding.ORDER, self.epoch))
        else:
            order = torch.arange(size)
        draws = None
        if self.crop or self.flip:
            draws = draw(self.seed, self.epoch, size, self.crop)
            if not self.flip:
                draws = Draws(draws.offsets, torch.zeros_like(draws.flips))
            draws = draws.to(self.device)
        return self._batches(self.epoch, order.to(self.device), draws)

    def _batches(self, epoch: int, order: Tensor, draws: Draws | None) -> Iterator[Batch]:
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = self.images[index]
            if draws is not None:
                images = crop_and_flip(images, draws.of(index), self.crop)
            yield Batch(self._normalise(images), self.labels[index], index, epoch, step)
