"""Adversarial training by TRADES."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.adversarial import AdversarialMethod, natural_of
from kd_bench.methods.parameters import NonNegative
from kd_bench.types import Batch, Outputs, Pair


class TRADES(AdversarialMethod):
    """TRADES: the cross-entropy of the images, and the divergence of the perturbed images' probabilities from theirs.

    ce_weight * CE(n) + beta * KL(softmax(n) || softmax(a)), n the logits of the images and a those of the perturbed
    ones, which are made with the same divergence. Zhang et al., "Theoretically Principled Trade-off between Robustness
    and Accuracy" (2019); beta is their 1 / lambda. The default is that of their code on CIFAR-10.

    Args:
        beta: Weight of the divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "adversarial"
    needs_teacher = False

    def __init__(self, pair: Pair, *, beta: NonNegative = 6.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.beta, self.ce_weight = beta, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Terms "ce" and "kl"."""
        natural = natural_of(teacher)
        return {
            "ce": self.ce_weight * self.label_loss(natural, batch),
            "kl": self.beta * losses.trades(natural.logits, student.logits),
        }
