"""Transformed teacher matching: only the teacher has a temperature."""

import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_logits, check_positive, check_sample_weights
from kd_bench.losses.precision import at_least_float32, batch_mean


def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float, sample_weights: Tensor | None = None) -> Tensor:
    """KL(q || softmax(s)) with q = p^gamma / sum_j p_j^gamma and p = softmax(t), mean over the batch.

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (2024). q is softmax(gamma * t), the
    teacher at temperature 1 / gamma; the student's temperature is 1, and there is no factor T^2. Both sides have a
    gradient.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        gamma: The exponent.
        sample_weights: (B,), factors of the samples' divergences before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import ttm, kd
    >>> student, teacher = torch.randn(2, 3, 5)
    >>> bool((ttm(student, teacher, gamma=1.0) - kd(student, teacher, temperature=1.0)).abs() < 1e-6)
    True
    """
    check_sample_weights(student_logits, sample_weights)
    return batch_mean(_divergences(student_logits, teacher_logits, gamma)[0], sample_weights)


def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float, sample_weights: Tensor | None = None) -> Tensor:
    """``ttm`` with each image weighted by u = sum_j p_j^gamma, mean over the batch.

    Zheng and Yang (2024). u is 1 for a teacher that is certain of a class, and C^(1 - gamma) for a uniform one, so with
    gamma < 1 smooth teachers weigh more. The weights are not normalised. Computed in logarithms, because p_j can round
    to 0. Both sides have a gradient; the teacher's runs through u, too.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        gamma: The exponent.
        sample_weights: (B,), further factors of the samples' divergences before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import wttm, ttm
    >>> student, teacher = torch.randn(3, 4), torch.zeros(3, 4)
    >>> round((wttm(student, teacher, gamma=0.5) / ttm(student, teacher, gamma=0.5)).item(), 4)  # 4^(1 - 0.5)
    2.0
    """
    check_sample_weights(student_logits, sample_weights)
    divergences, log_masses = _divergences(student_logits, teacher_logits, gamma)
    return batch_mean(log_masses.exp() * divergences, sample_weights)


def _divergences(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns KL(q || softmax(s)) and log sum_j p_j^gamma, (B,) each."""
    check_logits(student_logits, teacher_logits)
    check_positive(gamma=gamma)
    log_powers = gamma * F.log_softmax(at_least_float32(teacher_logits), dim=-1)
    log_masses = log_powers.logsumexp(-1)
    student = F.log_softmax(at_least_float32(student_logits), dim=-1)
    teacher = log_powers - log_masses[:, None]
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1), log_masses
