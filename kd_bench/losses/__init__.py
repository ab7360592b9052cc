"""Losses of knowledge distillation: pure functions of tensors that import nothing but torch.

A loss is a scalar, or a tuple of scalars, and usually a mean over the batch; the other functions compute what losses
need. All compute in float32 (float64 for float64 inputs) under any autocast. An argument with a wrong shape or out of
range raises ValueError with a sentence that names it. The values of tensors are not read.
"""

from kd_bench.losses.adversarial import class_weights, ikl_adversarial, trades
from kd_bench.losses.alpha_beta import alpha_beta_divergence
from kd_bench.losses.attention import at, ft
from kd_bench.losses.cat_kd import cat_kd
from kd_bench.losses.crd import contrast, log_normaliser
from kd_bench.losses.ctkd import reversal_strength, reverse_gradient
from kd_bench.losses.dist import dist_terms
from kd_bench.losses.dkd import dkd, dkd_terms
from kd_bench.losses.entropy import entropy_weights
from kd_bench.losses.features import hierarchical_context, ofd_margin, partial_l2
from kd_bench.losses.ikl import batch_pairwise_mse, dkl, gkl, ikl, pairwise_mse
from kd_bench.losses.itrd import itrd_correlation, itrd_mutual
from kd_bench.losses.kdsvd import kdsvd
from kd_bench.losses.kl import binary_cross_entropy, cross_entropy, kd, soft_cross_entropy
from kd_bench.losses.maps import equal_sizes, unit_vectors
from kd_bench.losses.mlkd import batch_gram, class_gram, mlkd_terms
from kd_bench.losses.nkd import nkd_terms
from kd_bench.losses.nst import nst
from kd_bench.losses.precision import at_least_float32
from kd_bench.losses.relations import cc, cc_kernel, pkt, sp
from kd_bench.losses.rkd import rkd_angle, rkd_distance
from kd_bench.losses.rld import rld_terms
from kd_bench.losses.sdd import pool_regions, region_weights
from kd_bench.losses.staged import ab, fsp
from kd_bench.losses.standardise import logit_standardise
from kd_bench.losses.ttm import ttm, wttm
from kd_bench.losses.vid import vid

__all__ = [
    "ab",
    "alpha_beta_divergence",
    "at",
    "at_least_float32",
    "batch_gram",
    "batch_pairwise_mse",
    "binary_cross_entropy",
    "cat_kd",
    "cc",
    "cc_kernel",
    "class_gram",
    "class_weights",
    "contrast",
    "cross_entropy",
    "dist_terms",
    "dkd",
    "dkd_terms",
    "dkl",
    "entropy_weights",
    "equal_sizes",
    "fsp",
    "ft",
    "gkl",
    "hierarchical_context",
    "ikl",
    "ikl_adversarial",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kdsvd",
    "log_normaliser",
    "logit_standardise",
    "mlkd_terms",
    "nkd_terms",
    "nst",
    "ofd_margin",
    "pairwise_mse",
    "partial_l2",
    "pkt",
    "pool_regions",
    "region_weights",
    "reversal_strength",
    "reverse_gradient",
    "rkd_angle",
    "rkd_distance",
    "rld_terms",
    "soft_cross_entropy",
    "sp",
    "trades",
    "ttm",
    "unit_vectors",
    "vid",
    "wttm",
]
