"""Decoupled knowledge distillation: the divergence split at the target class."""

from torch import Tensor

from kd_bench.losses.arguments import (
    check_classes,
    check_logits,
    check_non_negative,
    check_positive,
    check_sample_weights,
)
from kd_bench.losses.masked import binary_divergence, is_class, split_logits
from kd_bench.losses.precision import batch_mean


def dkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each times T^2, mean over the batch.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), eq. 5 to 7: with p the teacher's and q the student's
    softmax at temperature T, and y the target class,

    * TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), the target against all other classes;
    * NCKD = KL(p' || q') with p'_j = p_j / (1 - p_y) for j != y, the other classes; 0 for two classes.

    KL(p || q) = TCKD + (1 - p_y) * NCKD. Computed from logits, with log-odds of the target z_y - logsumexp over the
    others, because a probability can round to 0 or 1. Both sides have a gradient.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: (B,) int64, y.
        temperature: T.
        sample_weights: (B,), factors of the samples' terms before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import dkd_terms, kd
    >>> student, teacher, labels = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    >>> tckd, nckd = dkd_terms(student, teacher, labels, temperature=1.0)
    >>> divergence = kd(student, teacher, temperature=1.0)
    >>> bool((tckd - divergence).abs() < 1e-6), nckd.item()
    (True, 0.0)
    """
    check_logits(student_logits, teacher_logits, least=2)
    check_classes(student_logits, labels)
    check_sample_weights(student_logits, sample_weights)
    check_positive(temperature=temperature)
    target = is_class(student_logits, labels)
    student, _, student_total = split_logits(student_logits, target, temperature)
    teacher, teacher_others, teacher_total = split_logits(teacher_logits, target, temperature)

    student_odds = student.gather(-1, labels[:, None]) - student_total
    teacher_odds = teacher.gather(-1, labels[:, None]) - teacher_total
    tckd = binary_divergence(teacher_odds, student_odds).squeeze(-1)

    # At the target the weight is exactly 0 and the difference is finite: no contribution to value or gradient.
    difference = (teacher - teacher_total) - (student - student_total)
    nckd = (teacher_others.softmax(-1) * difference).sum(-1)
    return batch_mean(tckd, sample_weights) * temperature**2, batch_mean(nckd, sample_weights) * temperature**2


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """``alpha`` * TCKD + ``beta`` * NCKD. Shapes as for ``dkd_terms``.

    Zhao et al. (2022), eq. 8. ``alpha`` = 1 and ``beta`` = 1 - p_y for each sample would be classical distillation.

    >>> import torch
    >>> from kd_bench.losses import dkd
    >>> logits = torch.randn(3, 5)
    >>> dkd(logits, logits, torch.tensor([0, 1, 4]), alpha=1.0, beta=8.0, temperature=4.0).item()
    0.0
    """
    check_non_negative(alpha=alpha, beta=beta)
    tckd, nckd = dkd_terms(student_logits, teacher_logits, labels, temperature, sample_weights)
    return alpha * tckd + beta * nckd
