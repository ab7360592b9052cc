"""Losses of knowledge distillation: pure functions of tensors that import nothing but torch.

All return scalars, means over the batch, in float32 (float64 for float64 inputs) under any autocast.
"""

from kd_bench.losses.adversarial import class_weights, ikl_adversarial, trades
from kd_bench.losses.crd import contrast, log_normaliser
from kd_bench.losses.dist import dist_terms
from kd_bench.losses.dkd import dkd, dkd_terms
from kd_bench.losses.features import hierarchical_context, ofd_margin, partial_l2
from kd_bench.losses.ikl import dkl, ikl, pairwise_mse
from kd_bench.losses.kl import binary_cross_entropy, cross_entropy, kd, soft_cross_entropy
from kd_bench.losses.precision import at_least_float32
from kd_bench.losses.rkd import rkd_angle, rkd_distance

__all__ = [
    "at_least_float32",
    "binary_cross_entropy",
    "class_weights",
    "contrast",
    "cross_entropy",
    "dist_terms",
    "dkd",
    "dkd_terms",
    "dkl",
    "hierarchical_context",
    "ikl",
    "ikl_adversarial",
    "kd",
    "log_normaliser",
    "ofd_margin",
    "pairwise_mse",
    "partial_l2",
    "rkd_angle",
    "rkd_distance",
    "soft_cross_entropy",
    "trades",
]
