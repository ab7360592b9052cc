"""Distributions over some of the classes, computed from logits: helpers of DKD, NKD and RLD."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.precision import at_least_float32


def is_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns a mask, (B, C), of the class of each row of ``logits``; ``labels`` are (B,) int64.

    >>> is_class(torch.zeros(2, 3), torch.tensor([0, 2]))
    tensor([[ True, False, False],
            [False, False,  True]])
    """
    return labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)


def split_logits(logits: Tensor, removed: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits / T, the same with -inf at the removed classes, and the logsumexp of the latter.

    All three are shifted by a constant per row that moves the largest of the other logits to 0, so that a shift of all
    logits or a large removed logit does not reduce their precision.

    Args:
        logits: (B, C).
        removed: (B, C) bool; at least one class of a row is not removed.
        temperature: T.
    """
    logits = at_least_float32(logits)
    top = logits.detach().masked_fill(removed, -float("inf")).amax(-1, keepdim=True)
    logits = (logits - top) / temperature
    others = logits.masked_fill(removed, -float("inf"))
    return logits, others, others.logsumexp(-1, keepdim=True)


def binary_divergence(teacher_odds: Tensor, student_odds: Tensor) -> Tensor:
    """Returns KL((p, 1 - p) || (q, 1 - q)), elementwise, from the log-odds of p and q.

    >>> round(binary_divergence(torch.tensor(0.0), torch.tensor(2.0)).item(), 4)  # p = 0.5, q = 0.8808
    0.4338
    """
    return _divergence_at(teacher_odds, student_odds) + _divergence_at(-teacher_odds, -student_odds)


def _divergence_at(teacher_odds: Tensor, student_odds: Tensor) -> Tensor:
    """Returns p * log(p / q) from the log-odds of p and q."""
    return teacher_odds.sigmoid() * (F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds))
