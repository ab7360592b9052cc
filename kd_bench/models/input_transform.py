"""The same picture for networks that differ in input size and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.config.data import Input
from kd_bench.utils.errors import UserError


class InputTransform(nn.Module):
    """Brings images in a data set's size and normalisation to those that a network wants.

    Changes of size are bicubic, antialiased, made on the normalised values, which for a linear filter is the same as
    making them before. Where nothing differs the images pass as they are.

    Args:
        network: What the images are for; its ``pretrained_cfg`` says how it wants them normalised.
        wanted: The settings.
        image_size: Height and width of the data set's images.
        mean: The data set's, of the channels, for images scaled to 0..1.
        std: As ``mean``.
        channels_last: Whether to lay the images out with the channels last.

    Raises:
        UserError: If the network's own normalisation is wanted, and it does not tell.
    """

    def __init__(
        self,
        network: nn.Module,
        wanted: Input,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.size = None if wanted.size in (None, image_size) else wanted.size
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale = shift = None
        cfg = getattr(network, "pretrained_cfg", {})
        if wanted.normalise == "network" and not {"mean", "std"} <= set(cfg):
            name = type(network).__name__
            raise UserError(f"input.normalise: {name} does not say in a pretrained_cfg which mean and std it wants")
        if wanted.normalise == "network" and (tuple(cfg["mean"]), tuple(cfg["std"])) != (tuple(mean), tuple(std)):
            own = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (cfg["mean"], cfg["std"])]
            given = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std)]
            scale = (given[1] / own[1]).float()
            shift = ((given[0] - own[0]) / own[1]).float()
        # Not persistent: they follow from the trial's settings and the data set.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images of the data set to (B, 3, size, size) ones of the network."""
        if self.size is not None:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        return images.to(memory_format=self.layout)
