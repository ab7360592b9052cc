"""Adversarial weight perturbation (Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Added to the norm of a gradient, which may be 0.
_TINY = 1e-20


def perturbable(network: nn.Module) -> list[nn.Parameter]:
    """The weights that are perturbed: named so, and of more than one dimension, so no biases and no batch norms."""
    return [one for name, one in network.named_parameters() if "weight" in name.rpartition(".")[2] and one.ndim > 1]


@contextmanager
def perturbed(weights: Sequence[nn.Parameter], gradients: Sequence[Tensor], gamma: float) -> Iterator[None]:
    """Inside, each weight tensor w is moved to w + gamma ||w|| g / ||g||; afterwards it is what it was, to the bit.

    The published code subtracts the move again after the step of the optimiser, which leaves rounding errors, and has
    the weight decay act on the moved weights; here the step begins at the weights themselves.

    Args:
        weights: What is moved.
        gradients: g of each, of the loss that is to become larger.
        gamma: Length of the move by the norm of the tensor.
    """
    before = [one.detach().clone() for one in weights]
    try:
        with torch.no_grad():
            for one, gradient in zip(weights, gradients, strict=True):
                one.add_(gradient * (gamma * one.norm() / (gradient.norm() + _TINY)))
        yield
    finally:
        with torch.no_grad():
            for one, old in zip(weights, before, strict=True):
                one.copy_(old)


@contextmanager
def untouched_buffers(module: nn.Module) -> Iterator[None]:
    """Afterwards the buffers (running statistics of batch norms) are what they were, whatever ran inside."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(before[name])
