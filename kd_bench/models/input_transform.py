"""Converts images for networks that differ in input size and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.config.data import Input
from kd_bench.utils.errors import UserError


class InputTransform(nn.Module):
    """Converts images from a data set's size and normalisation to those of a network.

    Resizing is bicubic and antialiased. It works on normalised values, which is equivalent for a linear filter. Images
    are returned unchanged if nothing differs.

    Args:
        network: The network; its ``pretrained_cfg`` has its mean and std.
        settings: The network's input settings.
        image_size: Height and width of the data set's images.
        mean, std: Of the data set's channels, for images scaled to 0..1.
        channels_last: Whether to convert the images to the channels-last memory format.

    Raises:
        UserError: If the settings ask for the network's normalisation and its ``pretrained_cfg`` has none.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Input,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.size = None if settings.size in (None, image_size) else settings.size
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale = shift = None
        cfg = getattr(network, "pretrained_cfg", {})
        if settings.normalise == "network" and not {"mean", "std"} <= set(cfg):
            raise UserError(f"input.normalise: {type(network).__name__} has no pretrained_cfg with mean and std")
        if settings.normalise == "network" and (tuple(cfg["mean"]), tuple(cfg["std"])) != (tuple(mean), tuple(std)):
            old_mean, old_std, new_mean, new_std = (
                torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
                for values in (mean, std, cfg["mean"], cfg["std"])
            )
            scale = (old_std / new_std).float()
            shift = ((old_mean - new_mean) / new_std).float()
        # Not checkpointed, because they follow from the trial's settings and the data set.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) normalised images of the data set to (B, 3, size, size) images of the network."""
        if self.size is not None:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        return images.to(memory_format=self.layout)
