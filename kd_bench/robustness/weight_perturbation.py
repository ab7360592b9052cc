"""Adversarial weight perturbation (Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Added to the norm of a gradient, which may be 0.
_TINY = 1e-20


def perturbed_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters to perturb: those named "weight" with more than one dimension (no biases, batch norms)."""
    return [
        parameter
        for name, parameter in network.named_parameters()
        if "weight" in name.rpartition(".")[2] and parameter.ndim > 1
    ]


@contextmanager
def perturb_weights(weights: Sequence[nn.Parameter], gradients: Sequence[Tensor], gamma: float) -> Iterator[None]:
    """Inside, each weight tensor w is moved to w + gamma ||w|| g / ||g||. Afterwards it is restored to the bit.

    The published code subtracts the move again after the optimiser's step, which leaves rounding errors, and applies
    weight decay to the moved weights. Here the step starts from the original weights.

    Args:
        weights: The tensors to move.
        gradients: g of each, of the loss that the move raises.
        gamma: Length of the move relative to the norm of the tensor.
    """
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient * (gamma * weight.norm() / (gradient.norm() + _TINY)))
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


@contextmanager
def keep_buffers(module: nn.Module) -> Iterator[None]:
    """Restores the buffers (running statistics of batch norms) at the end."""
    originals = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(originals[name])
