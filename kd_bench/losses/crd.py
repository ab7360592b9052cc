"""Contrastive representation distillation: an image's embedding is compared with a bank of one embedding per image.

The published code gathers a copy of (1 + K) bank rows for each image of a batch. Here one matrix product with the whole
bank yields all scores, from which the required ones are taken. If the bank is many times larger than 1 + K, its rows
are gathered for a few images at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.arguments import check_positive, check_shapes
from kd_bench.losses.precision import at_least_float32

#: The published code's constant that avoids log(0).
EPS = 1e-7

#: Largest ratio of bank rows to compared rows for which the product with the whole bank is used.
_DENSE_RATIO = 8

#: Elements in the largest copy of bank rows.
_COPY_SIZE = 1 << 25


def contrast(anchors: Tensor, bank: Tensor, index: Tensor, log_z: Tensor, temperature: float) -> Tensor:
    """Noise-contrastive loss of one side, which separates each anchor's own row of the bank from negatives.

    Tian et al., "Contrastive Representation Distillation" (2020), eq. 17 to 19, as released: with the probability
    P(a, i) = exp(a . bank_i / T) / Z, N rows in the bank, K negatives and noise K / N,

        - mean over anchors of [ log P+ / (P+ + K/N + eps) + sum over negatives of log (K/N) / (P- + K/N + eps) ].

    Only the anchors have a gradient, and no second one. The bank may change before ``backward``.

    Args:
        anchors: (B, D) embeddings of norm 1.
        bank: (N, D) embeddings of norm 1 of the other network.
        index: (B, 1 + K) int64 rows of the bank, the positive first.
        log_z: Scalar, the logarithm of Z.
        temperature: T.

    >>> import torch
    >>> from kd_bench.losses import contrast
    >>> bank = torch.eye(4)
    >>> index = torch.tensor([[0, 1, 2, 3]])
    >>> good, bad = (contrast(bank[i : i + 1], bank, index, torch.tensor(0.0), 0.07) for i in (0, 1))
    >>> bool(good < bad)
    True
    """
    check_shapes(anchors=(anchors, "B D"), bank=(bank, "N D"), index=(index, "B K"))
    if index.shape[1] < 2:
        columns = "one for the positive and one for each negative"
        raise ValueError(f"index should have at least 2 columns, {columns}, not {index.shape[1]}")
    check_positive(temperature=temperature)
    loss: Tensor = _Contrast.apply(anchors, bank, index, log_z, temperature)
    return loss


def log_normaliser(anchors: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """log Z, a scalar without gradient: N times the mean of exp(a . bank_i / T) over anchors and compared rows.

    The released code computes it from the first batch and keeps it. Arguments as for ``contrast``.

    >>> import torch
    >>> from kd_bench.losses import log_normaliser
    >>> log_normaliser(torch.zeros(2, 3), torch.eye(3), torch.tensor([[0, 1], [1, 2]]), 0.07).exp().item()
    3.0
    """
    check_shapes(anchors=(anchors, "B D"), bank=(bank, "N D"), index=(index, "B K"))
    check_positive(temperature=temperature)
    with torch.no_grad(), torch.autocast(anchors.device.type, enabled=False):
        scores = _scores(at_least_float32(anchors), at_least_float32(bank), index) / temperature
        return scores.flatten().logsumexp(0) - math.log(scores.numel()) + math.log(len(bank))


class _Contrast(torch.autograd.Function):
    """Computes the gradient in the forward pass, because autograd's saved tensors would need more memory."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, bank: Tensor, index: Tensor, log_z: Tensor, temperature: float) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            dtype, anchors, bank = anchors.dtype, at_least_float32(anchors), at_least_float32(bank)
            noise = (index.shape[1] - 1) / len(bank)
            log_odds = _scores(anchors, bank, index).div_(temperature).sub_(log_z + math.log(noise + EPS))
            positives = F.softplus(-log_odds[:, 0]).sum()
            negatives = F.softplus(log_odds[:, 1:]).sum() - log_odds[:, 1:].numel() * math.log(noise / (noise + EPS))
            if ctx.needs_input_grad[0]:
                slopes = log_odds.sigmoid_()
                slopes[:, 0] -= 1
                gradient = _weighted_rows(slopes, bank, index) / (temperature * len(anchors))
                ctx.save_for_backward(gradient.to(dtype))
            return (positives + negatives) / len(anchors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


def _is_dense(bank: Tensor, index: Tensor) -> bool:
    return len(bank) <= _DENSE_RATIO * index.shape[1]


def _scores(anchors: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Returns the inner products of each anchor with its rows of the bank, (B, M)."""
    if _is_dense(bank, index):
        return (anchors @ bank.T).gather(1, index)
    parts = [bank[rows] @ anchor[:, :, None] for anchor, rows in _parts(anchors, bank, index)]
    return torch.cat(parts).squeeze(-1)


def _weighted_rows(weights: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Returns the sum of each anchor's rows of the bank, (B, D), weighted by (B, M)."""
    if _is_dense(bank, index):
        sums = _sums_by_row if weights.device.type == "cpu" else sums_by_counting
        return sums(weights, index, len(bank)) @ bank
    parts = [part[:, None, :] @ bank[rows] for part, rows in _parts(weights, bank, index)]
    return torch.cat(parts).squeeze(1)


def _sums_by_row(weights: Tensor, index: Tensor, rows: int) -> Tensor:
    """Returns the sums of weights, (B, M), by anchor and row of the bank, (B, N). On a CPU it adds column by column."""
    return weights.new_zeros(len(weights), rows).scatter_add_(1, index, weights)


def sums_by_counting(weights: Tensor, index: Tensor, rows: int) -> Tensor:
    """Returns the same sums as ``_sums_by_row``, up to rounding, with the same bits every time on a GPU.

    On a GPU, ``scatter_add_`` adds in an order that varies, so the last bits of a step vary. ``index_put_``, which
    sorts first, takes longer, and in some versions of torch it reads a number from the GPU, so that a step cannot be
    recorded.

    Except in the first column, the positive's, a weight depends on anchor and row only. Therefore a sum over repeated
    negatives is their number times the weight, and counting is exact in any order. If no row is repeated, the result
    has the bits of ``scatter_add_``.
    """
    negatives, of_negatives = index[:, 1:], weights[:, 1:]
    zeros = weights.new_zeros(len(weights), rows)
    counts = zeros.scatter_add(1, negatives, torch.ones_like(of_negatives))
    sums = zeros.scatter_(1, negatives, of_negatives) * counts
    return sums.scatter_add_(1, index[:, :1], weights[:, :1])


def _parts(values: Tensor, bank: Tensor, index: Tensor) -> zip[tuple[Tensor, Tensor]]:
    size = max(1, _COPY_SIZE // (index.shape[1] * bank.shape[1]))
    return zip(torch.split(values, size), torch.split(index, size), strict=True)
