"""Random inputs for the losses, and the comparison of values and gradients."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

Loss = Callable[..., Tensor]

seeds = st.integers(0, 2**32 - 1)
batches = st.integers(1, 5)
classes = st.integers(2, 12)
scales = st.floats(1e-3, 10)
temperatures = st.floats(0.5, 10)


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def value_and_gradients(loss: Loss, *inputs: Tensor) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))]


def assert_same(ours: Loss, theirs: Loss, *inputs: Tensor) -> None:
    """Equal value, and equal gradient with respect to each of ``inputs``, in float64."""
    pairs = zip(value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12 * max(1.0, other.abs().max().item()))
