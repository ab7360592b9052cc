"""Distillation with the generalised Kullback-Leibler divergence, which follows IKL."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._class_prior import ClassPrior
from kd_bench.methods.base import require_teacher, warmup_of
from kd_bench.methods.parameters import Count, NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class GKLKD(ClassPrior):
    """Generalised KL: IKL-KD with smoothed class weights, and its pairwise term normalised over the batch.

    ce_weight * CE + warm-up * (alpha * 1/4 sum_bjk w_bj w_bk ((t_bj - t_bk) - (s_bj - s_bk))^2 / sum_bjk w_bj w_bk +
    beta * soft-CE at T), where b is the image. Cui et al., "Generalized Kullback-Leibler Divergence Loss" (2025), the
    successor of IKL by its authors; the formula is that of their released code (DKLv2). The pairwise term reads the raw
    logits; the soft cross-entropy has no factor T^2. The normalisation is over a micro-batch of a process, so it
    depends on their sizes.

    alpha and beta are named as in IKL's paper: the code's ALPHA is our ``beta`` and its BETA our ``alpha``. Released
    alpha / beta / gamma on CIFAR-100, with class weights unless marked (s) for those of the sample:

    * ResNet32x4 to ResNet8x4 16/1/0.05, to ShuffleNet-V1 8/1/0, to ShuffleNet-V2 12/3/0.1;
    * WRN-40-2 to WRN-16-2 20/3/0.3 (s), to WRN-40-1 12/1/0.3 (s), to ShuffleNet-V1 8/1/0 (s);
    * ResNet56 to ResNet20 4/1/0.2; ResNet110 to ResNet32 4/1/0.1 (s);
    * VGG13 to VGG8 8/1/0.2, to MobileNet-V2 12/4/0.1; ResNet50 to MobileNet-V2 8/1/0.05, the defaults.

    For ResNet50 to VGG8 and ResNet110 to ResNet20 nothing is published.

    Class weights start uniform, 1 / K. At the end of each epoch they become the teacher's mean probabilities for that
    epoch's images of the class, over all processes; a class without images keeps its row. The class of a mixed label is
    the one with the largest share.

    Args:
        alpha: Weight of the pairwise term.
        beta: Weight of the soft cross-entropy with the teacher.
        gamma: Exponent of the weights: 1 for IKL's weights, 0 for uniform ones.
        temperature: T of teacher and student in the soft cross-entropy.
        warmup_epochs: Epochs over which both terms grow linearly to their full weight; 0 for no warm-up.
        ce_weight: Weight of the cross-entropy with the labels.
        weights: How w is computed: "sample" is softmax(t / tau)^gamma of the image; "class" is the mean of softmax(t /
            tau) over the images of the class, to the power gamma.
        tau: Temperature of w.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        alpha: Weight = 8.0,
        beta: Weight = 1.0,
        gamma: NonNegative = 0.05,
        temperature: Temperature = 4.0,
        warmup_epochs: Count = 20,
        ce_weight: NonNegative = 1.0,
        weights: Literal["sample", "class"] = "class",
        tau: Temperature = 4.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.warmup_epochs, self.ce_weight = warmup_epochs, ce_weight
        self.init_weights(weights, tau)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "pairwise" and "soft_ce"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        weights = self.weights_of(logits, batch).pow(self.gamma)
        pairwise = losses.batch_pairwise_mse(student.logits, logits, weights, sample_weights)
        self.accumulate(logits, batch)
        soft = losses.soft_cross_entropy(student.logits, logits, self.temperature, sample_weights)
        factor = warmup_of(batch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "pairwise": factor * self.alpha * pairwise,
            "soft_ce": factor * self.beta * soft,
        }
