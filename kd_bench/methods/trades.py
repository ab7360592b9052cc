"""Adversarial training with TRADES."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.adversarial import AdversarialMethod, require_natural
from kd_bench.methods.parameters import NonNegative
from kd_bench.types import Batch, Outputs, Pair


class TRADES(AdversarialMethod):
    """TRADES: cross-entropy of the natural images, and KL divergence between natural and perturbed images.

    ce_weight * CE(n) + beta * KL(softmax(n) || softmax(a)), where n are the logits of the natural images and a those of
    the perturbed images. The perturbation maximises the same divergence. Zhang et al., "Theoretically Principled
    Trade-off between Robustness and Accuracy" (2019); beta is their 1 / lambda. The default is that of their code on
    CIFAR-10.

    Args:
        beta: Weight of the KL divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "adversarial"
    needs_teacher = False

    def __init__(self, pair: Pair, *, beta: NonNegative = 6.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.beta, self.ce_weight = beta, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "kl"."""
        natural = require_natural(teacher)
        return {
            "ce": self.ce_weight * self.label_loss(natural, batch),
            "kl": self.beta * losses.trades(natural.logits, student.logits),
        }
