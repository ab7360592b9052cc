"""Random inputs for the losses, and the comparison of values and gradients."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))]


def assert_same(loss: Loss, reference: Loss, *inputs: Tensor, rtol: float = 1e-9) -> None:
    """Equal value, and equal gradient with respect to each of ``inputs``, in float64."""
    pairs = zip(value_and_gradients(loss, *inputs), value_and_gradients(reference, *inputs), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(
            actual, expected, rtol=rtol, atol=1e-3 * rtol * max(1.0, expected.abs().max().item())
        )


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest result of any operation has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, Tensor):
                self.elements = max(self.elements, output.numel())
        return result
