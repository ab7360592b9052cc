"""Fidelity: how far a student predicts what its teacher predicts (Stanton et al., "Does Knowledge Distillation Really
Work?", 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class FidelityValues(NamedTuple):
    """The values of ``kd_bench.trials.evaluation_file.Fidelity``."""

    agreement: float
    kl: float
    teacher_errors: int
    agreement_on_errors: float | None


def compare_predictions(student: Tensor, teacher: Tensor, labels: Tensor) -> FidelityValues:
    """Compares the predictions of two networks, in float64.

    * agreement: the images for which both predict the same class, in percent;
    * KL: the mean over the images of sum_k p_k log(p_k / q_k) with p = softmax(teacher), q = softmax(student), at
      temperature 1, in nats;
    * agreement where the teacher errs: of the images that the teacher classifies wrongly, those for which the student
      predicts the same wrong class, in percent.

    Args:
        student, teacher: Logits, (N, K).
        labels: (N,) int64.
    """
    student, teacher = student.double(), teacher.double()
    predicted, taught = student.argmax(1), teacher.argmax(1)
    same, wrong = predicted == taught, taught != labels
    log_p, log_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    errors = int(wrong.sum())
    return FidelityValues(
        agreement=100 * float(same.double().mean()),
        kl=max(float(kl), 0.0),  # rounding may make a zero negative
        teacher_errors=errors,
        agreement_on_errors=100 * int((same & wrong).sum()) / errors if errors else None,
    )
