"""Precision of the losses: at least float32, because differences of probabilities are lost in 8 bits."""

import math

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Converts float16 and bfloat16 to float32, and returns other types unchanged.

    This is enough under ``torch.autocast`` too, because the losses use no operation that it runs in half precision.

    >>> import torch
    >>> from kd_bench.losses import at_least_float32
    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.float() if values.dtype in {torch.bfloat16, torch.float16} else values


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Returns ``logits`` / ``temperature``, (B, C), up to a constant per row: the row's maximum is moved to 0 first.

    A softmax does not depend on the constant, but the division rounds, and logits that share a large constant would
    lose precision. A division by a power of 2 does not round, so that the constant is left in.

    >>> tempered(torch.tensor([[1000.0, 1003.0]]), 3.0)
    tensor([[-1.,  0.]])
    """
    logits = at_least_float32(logits)
    if temperature == 1:
        return logits
    if math.frexp(temperature)[0] == 0.5:
        return logits / temperature
    return (logits - logits.detach().amax(-1, keepdim=True)).div_(temperature)
