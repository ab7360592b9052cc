"""Networks as attacks see them: from pixels between 0 and 1 to logits, the normalisation being part of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_bench.robustness.pgd import evaluating


class Pixels(nn.Module):
    """A network behind the normalisation of its images.

    Args:
        network: Takes normalised images.
        mean: Of the channels, for images scaled to 0..1; zeros with ones for ``std`` leave images as they are.
        std: As ``mean``.
        view: What else the images pass before the network, e.g. a change of size.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], view: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.view = network, view or nn.Identity()
        self.plain = not any(mean) and all(value == 1 for value in std)
        # Not persistent: the state dict stays the network's.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, K) logits."""
        if not self.plain:
            images = (images - self.get_buffer("mean")) / self.get_buffer("std")
        logits: Tensor = self.network(self.view(images))
        return logits


@contextmanager
def attacked(network: nn.Module) -> Iterator[None]:
    """Inside, a network is in evaluation mode, its parameters want no gradients, and cuDNN repeats itself to the bit.

    Some attacks call ``backward``, which would leave gradients in the parameters. Afterwards all is as it was, and so
    is torch's global generator.
    """
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    devices = sorted({parameter.device.index or 0 for parameter in wanted if parameter.device.type == "cuda"})
    tf32 = torch.backends.cudnn.allow_tf32
    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
    with evaluating(network), torch.random.fork_rng(devices), repeatable:
        try:
            network.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in wanted.items():
                parameter.requires_grad_(requires_grad)
