"""Cross-entropy with labels and with a teacher, and the Kullback-Leibler divergence of classical distillation."""

import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_labels, check_logits, check_positive, check_sample_weights
from kd_bench.losses.precision import at_least_float32, batch_mean, tempered


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, mean over the batch.

    Args:
        logits: (B, C).
        labels: (B,) int64 class indices, or (B, C) probabilities, e.g. of mixed images.

    >>> import torch
    >>> from kd_bench.losses import cross_entropy
    >>> round(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)  # log 4
    1.3863
    """
    check_labels(logits, labels)
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels.to(logits.dtype) if labels.ndim == 2 else labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class, mean over the batch and the classes.

    Wightman et al., "ResNet strikes back" (2021), section 3, for images mixed of two, which may have two classes.

    Args:
        logits: (B, C).
        labels: (B,) int64 class indices, or (B, C) probabilities.

    >>> import torch
    >>> from kd_bench.losses import binary_cross_entropy
    >>> round(binary_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)  # log 2
    0.6931
    """
    check_labels(logits, labels)
    logits = at_least_float32(logits)
    targets = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[-1])
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), summed over the classes, mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; T^2 keeps the size of
    the gradient about the same for every temperature. Both sides have a gradient.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        temperature: T; a tensor without dimensions has a gradient, also through T^2.
        sample_weights: (B,), factors of the samples' divergences before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import kd
    >>> kd(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 5.0]]), temperature=4.0).item()
    0.0
    """
    check_logits(student_logits, teacher_logits)
    check_sample_weights(student_logits, sample_weights)
    check_positive(temperature=temperature)
    if isinstance(temperature, Tensor):
        temperature = at_least_float32(temperature)
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1)
    teacher = F.log_softmax(tempered(teacher_logits, temperature), dim=-1)
    if sample_weights is None:
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    divergences = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return batch_mean(divergences, sample_weights) * temperature**2


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, sample_weights: Tensor | None = None
) -> Tensor:
    """- sum_j softmax(t / T)_j * log_softmax(s / T)_j, mean over the batch; there is no factor T^2.

    The second term of DKL and IKL (``kd_bench.losses.dkl``). Both sides have a gradient.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        temperature: T.
        sample_weights: (B,), factors of the samples' cross-entropies before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import soft_cross_entropy
    >>> round(soft_cross_entropy(torch.zeros(1, 4), torch.randn(1, 4)).item(), 4)  # log 4 for any teacher
    1.3863
    """
    check_logits(student_logits, teacher_logits)
    check_sample_weights(student_logits, sample_weights)
    check_positive(temperature=temperature)
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1)
    teacher = F.softmax(tempered(teacher_logits, temperature), dim=-1)
    return -batch_mean((teacher * student).sum(-1), sample_weights)
