"""Precision of the losses, at least float32, because differences of probabilities are lost in 8 bits; their mean."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def at_least_float32(values: Tensor) -> Tensor:
    """Converts float16 and bfloat16 to float32, and returns other types unchanged.

    This is enough under ``torch.autocast`` too, because the losses use no operation that it runs in half precision.

    >>> import torch
    >>> from kd_bench.losses import at_least_float32
    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.float() if values.dtype in {torch.bfloat16, torch.float16} else values


def tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``logits`` / ``temperature``, (B, C), up to a constant per row: the row's maximum is moved to 0 first.

    A softmax does not depend on the constant, but the division rounds, and logits that share a large constant would
    lose precision. A division by a power of 2 does not round, so that the constant is left in, unless the temperature
    is a tensor: its value is not read, and it has a gradient.

    >>> tempered(torch.tensor([[1000.0, 1003.0]]), 3.0)
    tensor([[-1.,  0.]])
    """
    logits = at_least_float32(logits)
    if isinstance(temperature, Tensor):
        return (logits - logits.detach().amax(-1, keepdim=True)) / temperature
    if temperature == 1:
        return logits
    if math.frexp(temperature)[0] == 0.5:
        return logits / temperature
    return (logits - logits.detach().amax(-1, keepdim=True)).div_(temperature)


def batch_mean(values: Tensor, sample_weights: Tensor | None) -> Tensor:
    """Returns the mean of ``values``, (B,), each multiplied by its weight, (B,), if there are weights.

    >>> batch_mean(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])).item()  # the weights are not normalised
    2.0
    """
    return values.mean() if sample_weights is None else (sample_weights * values).mean()


def matmul(first: Tensor, second: Tensor) -> Tensor:
    """Returns the product of (..., M, N) and (..., N, K) in their own precision under any autocast.

    Its gradient, which is not differentiable, has the same precision if ``backward`` runs under autocast.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     matmul(torch.ones(1, 1), torch.ones(1, 1)).dtype
    torch.float32
    """
    product: Tensor = _Product.apply(first, second)
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        with torch.autocast(first.device.type, enabled=False):
            return first @ second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.saved_tensors
        with torch.autocast(first.device.type, enabled=False):
            to_first = grads[0] @ second.mT if ctx.needs_input_grad[0] else None
            to_second = first.mT @ grads[0] if ctx.needs_input_grad[1] else None
        return to_first, to_second
