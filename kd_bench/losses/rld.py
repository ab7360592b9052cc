"""Refined logit distillation: the teacher's confidence, and its classes ranked below the label."""

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_classes, check_logits, check_positive, check_sample_weights
from kd_bench.losses.masked import binary_divergence, is_class, split_logits
from kd_bench.losses.precision import at_least_float32, batch_mean


def rld_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    confidence_temperature: float,
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RLD's sample confidence distillation (SCD) and masked correlation distillation (MCD), mean over the batch.

    Sun et al., "Knowledge Distillation with Refined Logits" (2025): with y the label,

    * SCD = T'^2 KL((max_j p_j, 1 - max_j p_j) || (q_y, 1 - q_y)), p and q the softmaxes at T', so that the student is
      asked for the teacher's confidence in the label even if the teacher is confident of another class;
    * MCD = T^2 KL(p' || q') with p' and q' the softmaxes at T over the classes j with t_j < t_y. The label itself is
      not among them. It is 0 if the teacher ranks the label last or if only one class is below it.

    Computed from logits and log-odds. The released code masks classes by subtracting numbers, which leaves
    probabilities of the masked classes if no class is below the label. Both sides have a gradient.

    Args:
        student_logits: (B, C), s, C >= 2.
        teacher_logits: (B, C), t.
        labels: (B,) int64, y.
        temperature: T.
        confidence_temperature: T'.
        sample_weights: (B,), factors of the samples' terms before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import rld_terms
    >>> student, teacher = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    >>> scd, mcd = rld_terms(student, teacher, torch.tensor([1]), temperature=4.0, confidence_temperature=1.0)
    >>> bool(scd < 1e-6), mcd.item()  # equal confidence, though of another class; one class is below the label
    (True, 0.0)
    """
    check_logits(student_logits, teacher_logits, least=2)
    check_classes(student_logits, labels)
    check_sample_weights(student_logits, sample_weights)
    check_positive(temperature=temperature, confidence_temperature=confidence_temperature)
    teacher_logits = at_least_float32(teacher_logits)
    predictions, labels = teacher_logits.argmax(-1, keepdim=True), labels[:, None]
    teacher_odds = _log_odds(teacher_logits, predictions, confidence_temperature)
    student_odds = _log_odds(student_logits, labels, confidence_temperature)
    scd = binary_divergence(teacher_odds, student_odds)

    below = teacher_logits < teacher_logits.gather(-1, labels)
    exists = below.any(-1, keepdim=True)
    # A row without classes below the label is computed with all classes, and then set to 0: no -inf, no gradient.
    removed = ~below & exists
    student, _, student_total = split_logits(student_logits, removed, temperature)
    teacher, teacher_below, teacher_total = split_logits(teacher_logits, removed, temperature)
    difference = (teacher - teacher_total) - (student - student_total)
    mcd = torch.where(exists.squeeze(-1), (teacher_below.softmax(-1) * difference).sum(-1), 0)
    return (
        batch_mean(scd, sample_weights) * confidence_temperature**2,
        batch_mean(mcd, sample_weights) * temperature**2,
    )


def _log_odds(logits: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Returns log(p / (1 - p)), (B,), of the probability at T of one class per row; ``classes`` are (B, 1)."""
    logits, _, total = split_logits(logits, is_class(logits, classes.squeeze(-1)), temperature)
    return (logits.gather(-1, classes) - total).squeeze(-1)
