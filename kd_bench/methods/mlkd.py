"""Multi-level logit distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class MLKD(Method):
    """Multi-level logit distillation: samples, relations of images and relations of classes at five temperatures.

    ce_weight * CE of every view + kd_weight * (samples + batch + classes). Jin et al., "Multi-Level Logit Distillation"
    (2023). Each of the three is a sum over the temperatures T, 3, 5, 2 and 6: samples of T^2 * KL(p || q), batch of
    ||Q Q^T - P P^T||^2 / B, classes of ||Q^T Q - P^T P||^2 / K, where the B rows of P and Q are the softmaxes p of the
    teacher and q of the student. Masks are to leave out the samples of which the teacher is surest, and the classes
    that it sees most; see ``kd_bench.losses.mlkd_terms``.

    The published method sees two views of each image, the setting ``second_view`` of the row's training; both networks
    run on both. Without it the method sees one, as RLD's repository has it for a fair comparison ("mlkd_noaug").
    Published runs take 480 or 960 epochs, with the learning rate's steps after epochs 150, 180 and 210 still.

    The released code differs from the paper: its masks only halve the terms of the first view, two of the second view's
    KL terms read the first view, and the second view's terms for batch and classes are computed and dropped. All
    published numbers are of that code.

    The second view of the released code: crop and flip, two of RandAugment's 14 operations (its call names magnitude
    10, which it does not read: each strength is uniform over its range, and changes of brightness, colour, contrast and
    sharpness only reduce them), and a grey square whose side is uniform up to half the image's. Here strength and side
    are the same for all images, and the square has the mean colour. {randaugment: {operations: 2, magnitude: 15, bins:
    31}, cutout: 8} has about the means of the published strengths (of translations 3/2 of it) and the mean side.

    With ``standardise`` (Sun et al., 2024) only KL reads standardised logits. On CIFAR-100 temperature is 2 then, and
    kd_weight 9. On ImageNet both weights are 0.5, and T is 1.

    Args:
        ce_weight: Weight of the cross-entropy with the labels, of each view.
        kd_weight: Weight of the three other terms.
        temperature: T of teacher and student, beside 3, 5, 2 and 6.
        as_released: Whether to compute what the released code does; otherwise masks select, and every term reads its
            own view.
        standardise: Whether KL is computed from standardised logits.
    """

    uses_second_view = True

    def __init__(
        self,
        pair: Pair,
        *,
        ce_weight: NonNegative = 0.1,
        kd_weight: Weight = 0.9,
        temperature: Temperature = 4.0,
        as_released: bool = True,
        standardise: bool = False,
    ) -> None:
        super().__init__(pair)
        self.ce_weight, self.kd_weight, self.temperature = ce_weight, kd_weight, temperature
        self.as_released, self.standardise = as_released, standardise

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "samples", "batch" and "classes"."""
        teacher = require_teacher(teacher)
        ce, strong = self.label_loss(student, batch), None
        if student.second_view is not None and teacher.second_view is not None:
            ce = ce + self.label_loss(student.second_view, batch)
            strong = student.second_view.logits, teacher.second_view.logits.detach()
        samples, of_batch, classes = losses.mlkd_terms(
            student.logits,
            teacher.logits.detach(),
            self.temperature,
            strong=strong,
            as_released=self.as_released,
            standardise=self.standardise,
        )
        return {
            "ce": self.ce_weight * ce,
            "samples": self.kd_weight * samples,
            "batch": self.kd_weight * of_batch,
            "classes": self.kd_weight * classes,
        }
