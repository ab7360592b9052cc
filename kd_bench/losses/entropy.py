"""Sample weights of entropy-based adaptive distillation (EA-KD)."""

import math

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_logits, check_positive
from kd_bench.losses.precision import tempered


@torch.no_grad()
def entropy_weights(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0, bound: float | None = None
) -> Tensor:
    """1/2 H(t) (1 + H(s) / log C), (B,), without gradient: a factor of each sample's loss.

    Su et al., "EA-KD: Entropy-based Adaptive Knowledge Distillation" (2025). H(z) = - sum_c p_c log(p_c + 1e-10) with
    p = softmax(z / T). The weights are not normalised. T is 3 in the published runs on CIFAR-100, 2 on ImageNet.

    Args:
        student_logits, teacher_logits: (B, C), s and t, C >= 2.
        temperature: T.
        bound: Largest entropy, log C if None. The released files of KD and DKD on CIFAR-100 have 100, the number of
            classes without the logarithm.

    >>> import torch
    >>> from kd_bench.losses import entropy_weights
    >>> entropy_weights(torch.zeros(1, 4), torch.zeros(1, 4))  # log 4
    tensor([1.3863])
    """
    check_logits(student_logits, teacher_logits, least=2)
    check_positive(temperature=temperature)
    if bound is not None:
        check_positive(bound=bound)
    bound = math.log(student_logits.shape[-1]) if bound is None else bound
    student, teacher = _entropy(tempered(student_logits, temperature)), _entropy(tempered(teacher_logits, temperature))
    return 0.5 * teacher * (1 + student / bound)


def _entropy(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(-1)
    return -(probabilities * (probabilities + 1e-10).log()).sum(-1)
