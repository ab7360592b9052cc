"""Losses of knowledge distillation: pure functions of tensors that import nothing but torch.

All return a scalar, the mean over the batch, in float32 (float64 for float64 inputs) whatever the precision around.
"""

from kd_bench.losses.dkd import dkd, dkd_terms
from kd_bench.losses.ikl import dkl, ikl, pairwise_mse
from kd_bench.losses.kl import cross_entropy, kd, soft_cross_entropy
from kd_bench.losses.precision import at_least_single

__all__ = [
    "at_least_single",
    "cross_entropy",
    "dkd",
    "dkd_terms",
    "dkl",
    "ikl",
    "kd",
    "pairwise_mse",
    "soft_cross_entropy",
]
