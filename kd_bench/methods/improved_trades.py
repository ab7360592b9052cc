"""Adversarial training by TRADES with what the authors of IKL improved it by."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.adversarial import AdversarialMethod, natural_of
from kd_bench.methods.parameters import NonNegative
from kd_bench.types import Batch, Outputs, Pair


class ImprovedTRADES(AdversarialMethod):
    """TRADES with adversarial weight perturbation and a radius that grows over the epochs: the baseline of IKL-AT.

    The loss is that of TRADES, ce_weight * CE(n) + beta * KL(softmax(n) || softmax(a)). What is improved is how it is
    trained, so a recipe has to switch that on: ``adversarial.ramp`` and ``adversarial.weight_perturbation``. The
    authors' script also averages the weights over the epochs. Cui et al., "Decoupled Kullback-Leibler Divergence Loss",
    A.4, and the released train_trades_cifar.py, whose script has the default of beta on CIFAR-100.

    Args:
        beta: Weight of the divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "adversarial"
    needs_teacher = False
    demands = ("ramp", "weight_perturbation")

    def __init__(self, pair: Pair, *, beta: NonNegative = 9.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.beta, self.ce_weight = beta, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Terms "ce" and "kl"."""
        natural = natural_of(teacher)
        return {
            "ce": self.ce_weight * self.label_loss(natural, batch),
            "kl": self.beta * losses.trades(natural.logits, student.logits),
        }
