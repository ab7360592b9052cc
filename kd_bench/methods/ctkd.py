"""CTKD: curriculum temperature for knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Positive, Weight
from kd_bench.types import Batch, Outputs, Pair


class CTKD(Method):
    """Curriculum temperature: classical distillation at a temperature that is trained to make the task harder.

    ce_weight * CE + kd_weight * T^2 * KL(softmax(t / T) || softmax(s / T)), where T = lowest_temperature +
    temperature_range * sigmoid(theta). Li et al., "Curriculum Temperature for Knowledge Distillation" (2023), with one
    temperature for all images. theta is a number that starts at 1, which is T = 15.6 with the defaults. It is trained
    with the student, but its gradient is multiplied by - lambda, so that it maximises the loss. lambda grows from 0 to
    1 over the first epochs, as (1 - cos(pi E / ramp_epochs)) / 2 with epochs E from 1. As in the released code, the
    gradient also runs through the factor T^2, and the optimiser's weight decay acts on theta.

    The paper's other variant, in which a small network predicts a temperature for each image, is not here. On ImageNet
    ramp_epochs is 5, and both weights are 1. With ``standardise`` the published temperature falls to its lowest value,
    2, within 2 to 5 epochs and stays there.

    Args:
        ce_weight: Weight of the cross-entropy with the labels.
        kd_weight: Weight of the KL divergence.
        lowest_temperature: Lower bound of T.
        temperature_range: Difference of the upper and the lower bound of T.
        ramp_epochs: First epoch in which the gradient of theta has its full strength; 0 for full strength at once.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        ce_weight: NonNegative = 0.1,
        kd_weight: Weight = 0.9,
        lowest_temperature: Positive = 1.0,
        temperature_range: Positive = 20.0,
        ramp_epochs: Count = 10,
    ) -> None:
        super().__init__(pair)
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.lowest_temperature, self.temperature_range = lowest_temperature, temperature_range
        self.ramp_epochs = ramp_epochs
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "kd"."""
        teacher = require_teacher(teacher)
        strength = batch.epoch_value(lambda epoch: losses.reversal_strength(epoch, self.ramp_epochs))
        theta = losses.reverse_gradient(self.theta, strength)
        temperature = self.lowest_temperature + self.temperature_range * theta.sigmoid()
        divergence = losses.kd(
            student.logits, teacher.logits.detach(), temperature, self.sample_weights(student, teacher)
        )
        return {"ce": self.ce_weight * self.label_loss(student, batch), "kd": self.kd_weight * divergence}
