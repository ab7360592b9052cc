"""Mixup and cutmix of every sample with a partner from the whole set.

The partner is not taken from the batch, so that a mixed sample does not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd_bench.data.augment.crop_flip import ImageParams, box_mask
from kd_bench.utils import seeding


@dataclass(frozen=True)
class MixParams(ImageParams):
    """Parameters of mixup and cutmix for every sample of a set in one epoch, in the set's order."""

    partner: Tensor
    """(N,) int64: index of the other sample; a permutation, and no sample is its own partner unless it is alone."""
    weight: Tensor
    """(N,) float32, 0 to 1: weight of the sample's own label, lambda in the papers."""
    cut: Tensor
    """(N,) bool: True pastes a box of the partner (cutmix), False averages all pixels (mixup)."""
    boxes: Tensor
    """(N, 4) int64: that box, as for ``kd_bench.data.augment.crop_flip.box_mask``; empty for mixup."""


def draw_mix(
    seed: int,
    epoch: int,
    size: int,
    height: int,
    width: int,
    *,
    mixup: float | None = None,
    cutmix: float | None = None,
) -> MixParams:
    """Draws an epoch's parameters for a set of ``size`` samples.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018): lambda of a sample is Beta(alpha, alpha). Yun et
    al., "CutMix" (2019): so is 1 - the area of a box, in the image's proportions, with its centre anywhere; the part
    outside the image is cut off, and lambda becomes the fraction of the image outside the box, to the pixel. With both,
    half of the samples, drawn anew each epoch, get mixup and the others cutmix.

    Args:
        seed, epoch, size, height, width: As for ``draw_cutout``.
        mixup: alpha of mixup; None for cutmix only.
        cutmix: alpha of cutmix; None for mixup only.

    Raises:
        ValueError: Both are None.
    """
    if mixup is None and cutmix is None:
        raise ValueError("there is neither mixup nor cutmix to draw")
    generator = seeding.generator(seed, seeding.MIX, epoch)
    circle = torch.randperm(size, generator=generator)
    partner = torch.empty_like(circle)
    partner[circle] = circle.roll(1)
    cut = torch.rand(size, generator=generator) < 0.5
    row = torch.randint(height, (size,), generator=generator)
    column = torch.randint(width, (size,), generator=generator)
    if mixup is None or cutmix is None:
        cut = torch.full((size,), mixup is None)

    weight = torch.ones(size, dtype=torch.float64)
    boxes = torch.zeros(size, 4, dtype=torch.int64)
    if mixup is not None:
        weight = torch.where(cut, weight, _beta(seed, "mixup", epoch, mixup, size))
    if cutmix is not None:
        side = (1 - _beta(seed, "cutmix", epoch, cutmix, size)).sqrt()
        box_height, box_width = (side * height).to(torch.int64), (side * width).to(torch.int64)
        top, left = row - box_height // 2, column - box_width // 2
        bottom, right = (top + box_height).clamp(max=height), (left + box_width).clamp(max=width)
        clipped = torch.stack([top.clamp(min=0), left.clamp(min=0), bottom, right], dim=1)
        boxes = torch.where(cut[:, None], clipped, boxes)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        weight = torch.where(cut, 1 - area.to(torch.float64) / (height * width), weight)
    return MixParams(partner, weight.to(torch.float32), cut, boxes)


def _beta(seed: int, name: str, epoch: int, alpha: float, size: int) -> Tensor:
    # NumPy's, because torch draws from Beta with its global generator only.
    generator = np.random.Generator(np.random.PCG64(seeding.derive(seed, f"{seeding.MIX}/{name}", epoch)))
    return torch.from_numpy(generator.beta(alpha, alpha, size))


def mix_images(images: Tensor, partners: Tensor, mix: MixParams) -> Tensor:
    """Mixes every image with its partner.

    Args:
        images: (B, C, H, W) float.
        partners: (B, C, H, W) float, the images of ``mix.partner``.
        mix: The parameters of these B samples.
    """
    # Separate products, not lerp, which may or may not fuse its operations depending on a pixel's place in the batch.
    weight = torch.where(mix.cut, 1.0, mix.weight).view(-1, 1, 1, 1)
    weight = weight.masked_fill(box_mask(mix.boxes, *images.shape[2:]), 0.0)
    return images * weight + partners * (1 - weight)


def mix_labels(labels: Tensor, partners: Tensor, mix: MixParams, num_classes: int) -> Tensor:
    """Mixes every label with its partner's.

    Args:
        labels: (B,) int64.
        partners: (B,) int64, the labels of ``mix.partner``.
        mix: As for ``mix_images``.
        num_classes: K.

    Returns:
        (B, K) float32; rows sum to one.
    """
    classes = torch.arange(num_classes, device=labels.device)
    weight = mix.weight[:, None]
    return (labels[:, None] == classes) * weight + (partners[:, None] == classes) * (1 - weight)
