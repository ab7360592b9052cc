"""Adversarial training with TRADES as the authors of IKL improved it."""

from __future__ import annotations

from kd_bench.methods.parameters import NonNegative
from kd_bench.methods.trades import TRADES
from kd_bench.types import Pair


class ImprovedTRADES(TRADES):
    """TRADES with adversarial weight perturbation and a radius that grows over the epochs: the baseline of IKL-AT.

    The loss is that of TRADES, ce_weight * CE(n) + beta * KL(softmax(n) || softmax(a)). The training is improved, so a
    recipe must switch on ``adversarial.ramp`` and ``adversarial.weight_perturbation``. The authors' script also
    averages the weights over the epochs. Cui et al., "Decoupled Kullback-Leibler Divergence Loss", A.4, and the
    released train_trades_cifar.py, whose script has the default of beta on CIFAR-100.

    Args:
        beta: Weight of the KL divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "adversarial"
    needs_teacher = False
    required_settings = ("ramp", "weight_perturbation")

    def __init__(self, pair: Pair, *, beta: NonNegative = 9.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair, beta=beta, ce_weight=ce_weight)
