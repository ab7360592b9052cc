"""Distillation with the decoupled Kullback-Leibler divergence, which IKL improves."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher, warmup_of
from kd_bench.methods.parameters import Count, NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class DKLKD(Method):
    """Decoupled KL: classical distillation, written as a pairwise term plus a soft cross-entropy.

    ce_weight * CE + warm-up * T^2 * DKL(t / T, s / T), where DKL = alpha * 1/4 sum_jk p_j p_k ((t_j - t_k) - stop(s_j -
    s_k))^2 + beta * soft-CE with p = softmax(t / T). Cui et al., "Decoupled Kullback-Leibler Divergence Loss", appendix
    eq. 12 and 13.

    The pairwise term has no gradient, because its student side is stopped and the teacher is frozen. Only the soft
    cross-entropy trains: with beta = 1 the gradients are those of KL times T^2 (Lemma 1), for any ``alpha``. IKL
    (``ikl_kd``) removes this defect; this method is here to show it. In the authors' code alpha and beta are swapped.

    Args:
        alpha: Weight of the pairwise term, which is logged and has no gradient.
        beta: Weight of the soft cross-entropy with the teacher.
        temperature: T of teacher and student.
        warmup_epochs: Epochs over which both terms grow linearly to their full weight; 0 for no warm-up.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        alpha: Weight = 1.0,
        beta: Weight = 1.0,
        temperature: Temperature = 4.0,
        warmup_epochs: Count = 20,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.warmup_epochs, self.ce_weight = warmup_epochs, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "pairwise" and "soft_ce"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        weights = (losses.at_least_float32(logits) / self.temperature).softmax(-1)
        # T^2 cancels the two temperatures of the squared logit differences.
        pairwise = losses.pairwise_mse(student.logits.detach(), logits, weights, sample_weights)
        soft = losses.soft_cross_entropy(student.logits, logits, self.temperature, sample_weights) * self.temperature**2
        factor = warmup_of(batch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "pairwise": factor * self.alpha * pairwise,
            "soft_ce": factor * self.beta * soft,
        }
