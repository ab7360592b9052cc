"""Random crop and flip of a whole batch at once, on the device it lies on, and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench import seeding


@dataclass(frozen=True)
class Draws:
    """What an epoch's augmentation does with every image of a set, in the set's order."""

    offsets: Tensor
    """(N, 2) int64: row and column of the crop's upper left corner in the padded image."""
    flips: Tensor
    """(N,) bool: whether the crop is mirrored."""

    def of(self, index: Tensor) -> Draws:
        """The draws of these images only."""
        return Draws(self.offsets[index], self.flips[index])

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(self.offsets.to(device), self.flips.to(device))


def draw(seed: int, epoch: int, size: int, crop: int) -> Draws:
    """An epoch's draws for a set of ``size`` images and a crop with ``crop`` pixels of padding.

    The flips do not depend on ``crop``.
    """
    generator = seeding.generator(seed, seeding.AUGMENT, epoch)
    flips = torch.rand(size, generator=generator) < 0.5
    offsets = torch.randint(0, 2 * crop + 1, (size, 2), generator=generator)
    return Draws(offsets, flips)


def crop_and_flip(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Pads every image with ``crop`` zeros on each side, cuts it back to its size at its offset, mirrors it if drawn.

    Args:
        images: (B, C, H, W), before normalisation, so that the padding is black.
        draws: Those of these B images.
        crop: Pixels of padding.

    Returns:
        (B, C, H, W), of the same type.
    """
    count, channels, height, width = images.shape
    across = torch.arange(width, device=images.device)
    rows = draws.offsets[:, :1] + torch.arange(height, device=images.device)
    columns = draws.offsets[:, 1:] + torch.where(draws.flips[:, None], width - 1 - across, across)
    # Row and column as one number: a gather along one axis is three times as fast as indexing with two.
    source = (rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]).view(count, 1, height * width)
    padded = F.pad(images, (crop, crop, crop, crop)).flatten(2)
    return padded.gather(2, source.expand(-1, channels, -1)).view(images.shape)


class Normalise:
    """uint8 images to float32 as torchvision's ``to_tensor`` and ``normalize`` do it, to the last bit.

    Args:
        mean: Of the channels, for images scaled to 0..1.
        std: Of the channels, for images scaled to 0..1.
        device: Where the images lie.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        # On the device because CUDA multiplies by the reciprocal of a number that is not, which rounds differently.
        self.white = torch.tensor(255.0, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to float32."""
        return images.to(torch.float32).div_(self.white).sub_(self.mean).div_(self.std)
