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


def assert_finite(loss: Loss, *inputs: Tensor) -> None:
    """Value and gradients are finite."""
    assert all(torch.isfinite(result).all() for result in value_and_gradients(loss, *inputs))


def assert_single_is_close_to_double(loss: Loss, *inputs: Tensor) -> None:
    """Value and gradients of inputs in float32 are close to those in float64."""
    single = value_and_gradients(loss, *inputs)
    double = value_and_gradients(loss, *(tensor.double() for tensor in inputs))
    for actual, reference in zip(single, double, strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-4, atol=2e-6 * reference.abs().max().item())


def assert_half_is_computed_in_single(loss: Loss, *inputs: Tensor) -> None:
    """The loss of inputs in half precision has the value of float32, and gradients in the inputs' precision."""
    value, *gradients = value_and_gradients(loss, *inputs)
    assert value.dtype == torch.float32
    assert value == loss(*(tensor.float() for tensor in inputs))
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]


def assert_autocast_changes_nothing(loss: Loss, *inputs: Tensor) -> None:
    """Value and gradients of inputs in float32 have the same bits under autocast."""
    expected = value_and_gradients(loss, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        values = value_and_gradients(loss, *inputs)
    for actual, reference in zip(values, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, reference)


def assert_double_stays(loss: Loss, *inputs: Tensor) -> None:
    """Value and gradients of inputs in float64 are in float64."""
    assert {result.dtype for result in value_and_gradients(loss, *inputs)} == {torch.float64}


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
