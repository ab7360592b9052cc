"""Normalised knowledge distillation: cross-entropies with the teacher for the label and for the other classes."""

import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_classes, check_logits, check_positive, check_sample_weights
from kd_bench.losses.masked import is_class, split_logits
from kd_bench.losses.precision import at_least_float32, batch_mean


def nkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The soft cross-entropy of NKD for the label and for the other classes, mean over the batch.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels" (2023): with p the teacher's and q the student's softmax, and y the label,

    * target = - p_y log q_y, at temperature 1;
    * others = - T^2 sum_{j != y} p'_j log q'_j, with p' and q' the softmaxes at T over the classes other than y; 0 for
      two classes.

    NKD is target + gamma * others. Both sides have a gradient.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: (B,) int64, y.
        temperature: T of ``others``.
        sample_weights: (B,), factors of the samples' terms before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import nkd_terms
    >>> target, others = nkd_terms(torch.zeros(1, 5), torch.zeros(1, 5), torch.tensor([2]), temperature=1.0)
    >>> round(target.item(), 4), round(others.item(), 4)  # log(5) / 5 and log 4
    (0.3219, 1.3863)
    """
    check_logits(student_logits, teacher_logits, least=2)
    check_classes(student_logits, labels)
    check_sample_weights(student_logits, sample_weights)
    check_positive(temperature=temperature)
    log_q = F.log_softmax(at_least_float32(student_logits), dim=-1).gather(-1, labels[:, None])
    p = F.softmax(at_least_float32(teacher_logits), dim=-1).gather(-1, labels[:, None])
    is_label = is_class(student_logits, labels)
    student, _, student_total = split_logits(student_logits, is_label, temperature)
    _, teacher_others, _ = split_logits(teacher_logits, is_label, temperature)
    # At the label the weight is exactly 0 and the logarithm is finite: no contribution to value or gradient.
    others = -(teacher_others.softmax(-1) * (student - student_total)).sum(-1)
    target = -(p * log_q).squeeze(-1)
    return batch_mean(target, sample_weights), batch_mean(others, sample_weights) * temperature**2
