"""Networks as attacks see them: they map pixels from 0 to 1 to logits, and normalise the images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_bench.models.timm_interface import evaluation_mode


class NormalisedNetwork(nn.Module):
    """A network that normalises its images first.

    Args:
        network: Takes normalised images.
        mean: Of the channels, for images in [0, 1]. With zeros and a ``std`` of ones, images stay as they are.
        std: As ``mean``.
        view: Transforms the normalised images into the network's input, e.g. resizes them.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], view: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.view = network, view or nn.Identity()
        self._is_identity = not any(mean) and all(value == 1 for value in std)
        # Not persistent: the state dict stays the network's.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, K) logits."""
        if not self._is_identity:
            images = (images - self.get_buffer("mean")) / self.get_buffer("std")
        logits: Tensor = self.network(self.view(images))
        return logits


@contextmanager
def attack_mode(network: nn.Module) -> Iterator[None]:
    """Inside, a network is in evaluation mode, its parameters need no gradients, and cuDNN is deterministic.

    Some attacks call ``backward``, which would leave gradients in the parameters. Afterwards the network, cuDNN's flags
    and torch's global generator are as before.
    """
    requires_grad = {parameter: parameter.requires_grad for parameter in network.parameters()}
    devices = sorted({parameter.device.index or 0 for parameter in requires_grad if parameter.device.type == "cuda"})
    tf32 = torch.backends.cudnn.allow_tf32
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
    with evaluation_mode(network), torch.random.fork_rng(devices), deterministic:
        try:
            network.requires_grad_(False)
            yield
        finally:
            for parameter, value in requires_grad.items():
                parameter.requires_grad_(value)
