"""Loads batches of a set in memory: no workers, no PIL, a few tensor operations per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_bench.config.data import Augment
from kd_bench.data.augment import mixing, policies
from kd_bench.data.augment.crop_flip import (
    CropFlipParams,
    Normalise,
    crop_and_flip,
    draw_crop_flip,
    draw_cutout,
    draw_erasing,
    view_count,
    zero_boxes,
)
from kd_bench.data.augment.plugin import AugmentPlugin
from kd_bench.types import Batch
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError

#: Pixel values (4 MiB, 1,365 images of CIFAR) that a policy changes at once if batches are smaller: an operation that
#: one image in twenty has is not worth starting for 64 images.
_POLICY_VALUES = 2**22

#: Pixel values (64 MiB as float32, 5,461 images of CIFAR) of the batches that a GPU makes at once, because starting an
#: operation takes longer there than changing a batch. A CPU makes each batch by itself, which then is in its cache.
_GPU_VALUES = 2**24


@dataclass(frozen=True)
class _EpochParams:
    """The random parameters of an epoch's augmentation, for every image in the set's order."""

    epoch: int
    seed: int
    """Of this view of the images."""
    crop_flip: CropFlipParams | None
    policy: policies.PolicyParams | None
    zeroed: tuple[Tensor, ...]
    """Boxes of cutout and erasing, (N, 4) int64 each."""
    mix: mixing.MixParams | None
    view_ids: Tensor | None
    """(N,) int64 on the CPU: the number of each image's view; None if there are other augmentations than crop and flip.
    """


class InMemoryLoader:
    """Yields the batches of one epoch each time it is iterated over.

    An epoch is a function of (seed, epoch) alone: a second iteration yields the same batches, and ``set_epoch``
    chooses another epoch. The augmentation of an image does not depend on its batch; the partner of a mixed image is
    augmented as in its own batch. All random numbers are drawn on the CPU, so that they are the same for every device.
    Each kind of augmentation has its own, so that switching one on does not change another.

    The last batch may be smaller. When shuffling, a last batch of one image is left out, because batch normalisation
    cannot train on it; the image left out changes from epoch to epoch. (A batch size of one keeps all images.)

    Args:
        images: (N, C, H, W) uint8; a policy needs three channels. Moved to the device once; on the CPU they are not
            copied.
        labels: (N,) int64.
        batch_size: B.
        mean, std: Of the channels, for images scaled to 0..1.
        device: Where the batches are made.
        augment: The augmentation, in which None means none; None leaves the images as they are.
        num_classes: K of the (B, K) labels of mixed images; required if ``augment`` mixes.
        shuffle: A new order every epoch; otherwise the set's.
        seed: The trial's seed.
        view: Number of this view of the images: each has its own random numbers, and all have the same order.
        values_at_once: Pixel values of the batches that are made at once, rounded down to whole batches, at least one;
            None chooses by the device. It does not change the batches. A plug-in changes each batch by itself.

    Raises:
        ValueError: Sizes do not fit together, or ``num_classes`` is missing.
        UserError: A batch would have more images than an epoch; or the augmentation plug-in is missing, or was changed
            since the trial was planned.
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
        values_at_once: int | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(f"{images.dtype} images {tuple(images.shape)} do not fit labels {tuple(labels.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be positive")
        if shuffle and batch_size > len(images):
            raise UserError(f"batch_size: {batch_size} is more than the {len(images)} images of an epoch")
        self.augment = augment or Augment()
        self.mixes = self.augment.mixup is not None or self.augment.cutmix is not None
        if self.mixes and num_classes is None:
            raise ValueError("mixed labels need num_classes")
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.size = len(images)
        """Number of images that an epoch is drawn from."""
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.shuffle = shuffle
        self.seed = seed
        self.view = view
        self.epoch = 0
        self._values_at_once = values_at_once or (_GPU_VALUES if self.device.type == "cuda" else 1)
        self._normalise = Normalise(mean, std, self.device)
        self._plugin = AugmentPlugin(self.augment.own, self.augment.own_source) if self.augment.own else None

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded, as in loaders that decode; none here."""
        return {}

    def close(self) -> None:
        """Does nothing, because there are no workers."""

    @property
    def view_count(self) -> int:
        """Number of different views of an image; 0 if there are other augmentations than crop and flip."""
        only = Augment(crop=self.augment.crop, flip=self.augment.flip)
        return view_count(self.augment.crop or 0) if self.augment == only and (only.crop or only.flip) else 0

    def __len__(self) -> int:
        """Number of batches."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > (1 if self.shuffle else 0))

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self._order(self.epoch), self._draw(self.epoch))

    def _order(self, epoch: int) -> Tensor:
        """Returns the indices of an epoch's images: int64, at most ``len(self)`` times the batch size."""
        if self.shuffle:
            order = torch.randperm(self.size, generator=seeding.generator(self.seed, seeding.ORDER, epoch))
        else:
            order = torch.arange(self.size)
        return order[: len(self) * self.batch_size]

    def _draw(self, epoch: int) -> _EpochParams:
        augment, device = self.augment, self.device
        seed = seeding.derive(self.seed, f"{seeding.VIEW}/{self.view}") if self.view else self.seed
        size, (height, width) = self.size, self.images.shape[2:]
        crop_flip, mix, view_ids, zeroed = None, None, None, []
        if augment.crop or augment.flip:
            crop_flip = draw_crop_flip(seed, epoch, size, augment.crop or 0)
            if not augment.flip:
                crop_flip = CropFlipParams(crop_flip.offsets, torch.zeros_like(crop_flip.flips))
            if self.view_count:
                view_ids = crop_flip.view_ids(augment.crop or 0)
            crop_flip = crop_flip.to(device)
        if augment.cutout:
            zeroed.append(draw_cutout(seed, epoch, size, augment.cutout, height, width).to(device))
        if augment.erase:
            zeroed.append(draw_erasing(seed, epoch, size, augment.erase, height, width).to(device))
        if self.mixes:
            mix = mixing.draw_mix(seed, epoch, size, height, width, mixup=augment.mixup, cutmix=augment.cutmix)
        policy = policies.draw_policy(augment, seed, epoch, size, height, width)
        return _EpochParams(epoch, seed, crop_flip, policy, tuple(zeroed), mix, view_ids)

    def _batches(self, order: Tensor, params: _EpochParams) -> Iterator[Batch]:
        unmixed = self._unmixed(order, params)
        view_ids = None if params.view_ids is None else order * self.view_count + params.view_ids[order]
        index = order.to(self.device)
        labels = self.labels[index]
        mix = partners = partner_labels = None
        if params.mix is not None:
            partners = self._unmixed(params.mix.partner[order], params)
            mix = params.mix.to(self.device).select(index)
            partner_labels = self.labels[mix.partner]
        for step in range(len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images, batch_labels = next(unmixed), labels[rows]
            if mix is not None and partners is not None and partner_labels is not None and self.num_classes is not None:
                batch_mix = mix.select(rows)
                images = mixing.mix_images(images, next(partners), batch_mix)
                batch_labels = mixing.mix_labels(batch_labels, partner_labels[rows], batch_mix, self.num_classes)
            batch_views = None if view_ids is None else view_ids[rows]
            yield Batch(images, batch_labels, index[rows], params.epoch, step, batch_views)

    def _unmixed(self, order: Tensor, params: _EpochParams) -> Iterator[Tensor]:
        """Yields batches of these images before they are mixed: (B, C, H, W) float, normalised."""
        device_order = order.to(self.device)
        values = self._values_at_once if params.policy is None else max(self._values_at_once, _POLICY_VALUES)
        finished_at_once = self._images_at_once(1 if self._plugin is not None else self._values_at_once)
        at_once = self._images_at_once(values)
        for start in range(0, len(order), at_once):
            index = device_order[start : start + at_once]
            images = self._take(order[start : start + at_once], index)
            if params.crop_flip is not None:
                images = crop_and_flip(images, params.crop_flip.select(index), self.augment.crop or 0)
            if params.policy is not None:
                steps = params.policy.steps[order[start : start + at_once]]
                images = policies.apply_policy(images, steps, params.policy.operations)
            parts = zip(index.split(finished_at_once), images.split(finished_at_once), strict=True)
            for step, (part_index, part) in enumerate(parts, start // self.batch_size):
                normalised = self._normalise(self._apply_plugin(part, order, params, step))
                for boxes in params.zeroed:
                    zero_boxes(normalised, boxes[part_index])
                yield from normalised.split(self.batch_size)

    def _take(self, positions: Tensor, index: Tensor) -> Tensor:
        """Returns the images at these positions, which are on the CPU and again on the device: (B, C, H, W) uint8."""
        return self.images.index_select(0, index)  # copies image by image; indexing copies pixel by pixel

    def _images_at_once(self, values: int) -> int:
        """Returns a number of images with at most so many pixel values, in whole batches, at least one."""
        return self.batch_size * max(1, values // (self.batch_size * self.images.shape[1:].numel()))

    def _apply_plugin(self, images: Tensor, order: Tensor, params: _EpochParams, step: int) -> Tensor:
        if self._plugin is None:
            return images
        index = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
        return self._plugin(images, index, params.seed, params.epoch, step)
