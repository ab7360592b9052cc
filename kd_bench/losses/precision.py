"""Losses are computed in single precision at least: probabilities and their differences do not survive 8 bits."""

import math

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32 where they are half-precision, unchanged otherwise (float64 stays).

    The losses use no operation that ``torch.autocast`` would take back to half precision, so this is enough there too.

    >>> import torch
    >>> from kd_bench.losses import at_least_float32
    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.float() if values.dtype in {torch.bfloat16, torch.float16} else values


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """``logits`` / ``temperature``, (B, C), up to a constant a row: the row's largest value is moved to 0 first.

    A softmax does not see the constant, but a division rounds: without this, logits that share a large constant would
    lose the digits that tell them apart. A power of 2, as most temperatures are, divides without rounding, and the
    logits are left where they are.

    >>> tempered(torch.tensor([[1000.0, 1003.0]]), 3.0)
    tensor([[-1.,  0.]])
    """
    logits = at_least_float32(logits)
    if temperature == 1:
        return logits
    if math.frexp(temperature)[0] == 0.5:
        return logits / temperature
    return (logits - logits.detach().amax(-1, keepdim=True)).div_(temperature)
