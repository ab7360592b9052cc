"""Mixup and cutmix: every sample with a partner from the whole set.

The partner is not taken from the batch, so that what a sample looks like in an epoch does not depend on the batch it
falls into.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd_bench.data.augment.crop_flip import inside
from kd_bench.utils import seeding


@dataclass(frozen=True)
class Mix:
    """How every sample of a set is mixed in an epoch, in the set's order."""

    partner: Tensor
    """(N,) int64: the sample it is mixed with; a permutation, and no sample is its own partner unless it is alone."""
    share: Tensor
    """(N,) float32, 0 to 1: the weight of its own label."""
    cut: Tensor
    """(N,) bool: whether a box of the partner is pasted (cutmix) instead of all pixels averaged (mixup)."""
    boxes: Tensor
    """(N, 4) int64: that box, as ``kd_bench.data.augment.crop_flip.inside`` takes it; empty for mixup."""

    def of(self, index: Tensor) -> Mix:
        """That of these samples only."""
        return Mix(self.partner[index], self.share[index], self.cut[index], self.boxes[index])

    def to(self, device: torch.device) -> Mix:
        """The same on a device."""
        return Mix(self.partner.to(device), self.share.to(device), self.cut.to(device), self.boxes.to(device))


def draw(
    seed: int,
    epoch: int,
    size: int,
    height: int,
    width: int,
    *,
    mixup: float | None = None,
    cutmix: float | None = None,
) -> Mix:
    """An epoch's mixing of a set of ``size`` samples.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018): lambda of a sample is Beta(alpha, alpha). Yun et
    al., "CutMix" (2019): so is 1 - the area of a box, in the image's proportions, with its centre anywhere; what
    protrudes is cut off, and lambda becomes what the box leaves of the image, to the pixel. With both, half of the
    samples, drawn anew each epoch, get the one and half the other.

    Args:
        seed: The trial's seed.
        epoch: From 0.
        size: N.
        height: Of the images.
        width: Of the images.
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

    share = torch.ones(size, dtype=torch.float64)
    boxes = torch.zeros(size, 4, dtype=torch.int64)
    if mixup is not None:
        share = torch.where(cut, share, _beta(seed, "mixup", epoch, mixup, size))
    if cutmix is not None:
        side = (1 - _beta(seed, "cutmix", epoch, cutmix, size)).sqrt()
        tall, wide = (side * height).to(torch.int64), (side * width).to(torch.int64)
        top, left = row - tall // 2, column - wide // 2
        bottom, right = (top + tall).clamp(max=height), (left + wide).clamp(max=width)
        found = torch.stack([top.clamp(min=0), left.clamp(min=0), bottom, right], dim=1)
        boxes = torch.where(cut[:, None], found, boxes)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        share = torch.where(cut, 1 - area.to(torch.float64) / (height * width), share)
    return Mix(partner, share.to(torch.float32), cut, boxes)


def _beta(seed: int, name: str, epoch: int, alpha: float, size: int) -> Tensor:
    # NumPy's, because torch draws from Beta by its global generator only.
    generator = np.random.Generator(np.random.PCG64(seeding.derive(seed, f"{seeding.MIX}/{name}", epoch)))
    return torch.from_numpy(generator.beta(alpha, alpha, size))


def mix_images(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """Every image mixed with its partner.

    Args:
        images: (B, C, H, W) float.
        partners: (B, C, H, W) float, those of ``mix.partner``.
        mix: That of these B samples.
    """
    # Separate products, not lerp, which may fuse or not fuse its operations by where in the batch a pixel lies.
    own = torch.where(mix.cut, 1.0, mix.share).view(-1, 1, 1, 1)
    own = own.masked_fill(inside(mix.boxes, *images.shape[2:]), 0.0)
    return images * own + partners * (1 - own)


def mix_labels(labels: Tensor, partners: Tensor, mix: Mix, num_classes: int) -> Tensor:
    """The labels' shares.

    Args:
        labels: (B,) int64.
        partners: (B,) int64, those of ``mix.partner``.
        mix: That of these B samples.
        num_classes: K.

    Returns:
        (B, K) float32; rows sum to one.
    """
    classes = torch.arange(num_classes, device=labels.device)
    share = mix.share[:, None]
    return (labels[:, None] == classes) * share + (partners[:, None] == classes) * (1 - share)
