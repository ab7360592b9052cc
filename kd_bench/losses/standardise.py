"""Logit standardisation, which any loss between logits can be preceded by."""

from torch import Tensor

from kd_bench.losses.arguments import check_shapes
from kd_bench.losses.precision import at_least_float32


def logit_standardise(logits: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7) over the classes, (B, C), with the unbiased standard deviation.

    Sun et al., "Logit Standardization in Knowledge Distillation" (2024). Both networks' logits are
    standardised before a loss with temperature. The gradient runs through mean and deviation; a row of equal logits
    becomes 0.

    Args:
        logits: (B, C), z, C >= 2.

    >>> import torch
    >>> from kd_bench.losses import logit_standardise
    >>> logit_standardise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    check_shapes(logits=(logits, "B C"))
    if logits.shape[1] < 2:
        raise ValueError(f"logits should have at least 2 classes, not {logits.shape[1]}")
    logits = at_least_float32(logits)
    # Moving the largest logit to 0 first preserves precision if all logits share a large constant.
    logits = logits - logits.detach().amax(-1, keepdim=True)
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)
