"""The decoupled (DKL), improved (IKL) and generalised (GKL) Kullback-Leibler divergence, in closed form.

All are a quadratic term on differences of logits with weight ``alpha``, plus a soft cross-entropy with weight
``beta``, as in the paper (Cui et al., "Decoupled Kullback-Leibler Divergence Loss", appendix eq. 12 to 15). The
authors' released code exchanges the two letters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.arguments import check_class_weights, check_logits, check_non_negative, check_sample_weights
from kd_bench.losses.kl import soft_cross_entropy
from kd_bench.losses.precision import at_least_float32, batch_mean


def pairwise_mse(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, sample_weights: Tensor | None = None
) -> Tensor:
    """1/4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2, mean over the batch, in O(B C) time and memory.

    With d = t - s, S = sum w and mu = sum(w d) / S the sum over pairs equals 1/2 S sum_j w_j (d_j - mu)^2: half the
    weighted variance of d if the weights sum to one. Centring before squaring preserves precision if teacher and
    student differ by a large constant. All arguments have a gradient, but no second one.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        weights: (B, C) or (C,), w >= 0 with a positive sum in each row.
        sample_weights: (B,), factors of the samples' sums before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import pairwise_mse
    >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 6.0]])
    >>> pairwise_mse(student, teacher, torch.full((3,), 1 / 3)).item()  # half the variance, which is 6
    3.0
    """
    check_logits(student_logits, teacher_logits)
    check_class_weights(student_logits, weights)
    check_sample_weights(student_logits, sample_weights)
    difference, weights = at_least_float32(teacher_logits) - at_least_float32(student_logits), at_least_float32(weights)
    sums: Tensor = _PairwiseMSE.apply(difference, weights)
    return 0.5 * batch_mean(sums, sample_weights)


def batch_pairwise_mse(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, sample_weights: Tensor | None = None
) -> Tensor:
    """1/4 sum_bjk w_bj w_bk ((t_bj - t_bk) - (s_bj - s_bk))^2 / sum_bjk w_bj w_bk, in O(B C) time and memory.

    The pairwise term of GKL (Cui et al., 2025, as released): ``pairwise_mse`` with one normalisation for the whole
    batch, so it does not depend on the scale of the weights, and images with larger weights count more. All arguments
    have a gradient, but no second one.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        weights: (B, C) or (C,), w >= 0 with a positive sum in each row. They need not sum to one.
        sample_weights: (B,), factors of the images' summands in the numerator; None for 1.

    >>> import torch
    >>> from kd_bench.losses import batch_pairwise_mse
    >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 6.0]])
    >>> batch_pairwise_mse(student, teacher, torch.full((3,), 5.0)).item()  # half the variance, which is 6
    3.0
    """
    pairwise = pairwise_mse(student_logits, teacher_logits, weights, sample_weights)
    return pairwise / at_least_float32(weights).sum(-1).square().mean()


def dkl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """DKL: with ``alpha`` = ``beta`` = 1 its gradients of both sides are those of KL(softmax(t) || softmax(s)).

    alpha * pairwise_mse(stop(s), t, stop(softmax(t))) + beta * soft_cross_entropy(s, stop(t)). The gradients are equal
    by Lemma 1 (appendix A.1, eq. 12 and 13, where t is o_m and s is o_n); the values are not. With a frozen teacher
    only the soft cross-entropy trains the student.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).

    >>> import torch
    >>> from kd_bench.losses import dkl, kd
    >>> student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    >>> dkl_gradients = torch.autograd.grad(dkl(student, teacher), (student, teacher))
    >>> kl_gradients = torch.autograd.grad(kd(student, teacher, temperature=1.0), (student, teacher))
    >>> [bool(torch.allclose(a, b, atol=1e-6)) for a, b in zip(dkl_gradients, kl_gradients)]
    [True, True]
    """
    check_non_negative(alpha=alpha, beta=beta)
    weights = at_least_float32(teacher_logits).detach().softmax(-1)
    return alpha * pairwise_mse(student_logits.detach(), teacher_logits, weights) + beta * soft_cross_entropy(
        student_logits, teacher_logits.detach()
    )


def ikl(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:
    """IKL: alpha * pairwise_mse(s, t, w) + beta * soft_cross_entropy(s, stop(t), T).

    Unlike DKL, the student has a gradient from the pairwise term, and the weights are an argument: class-wise mean
    probabilities in the paper (appendix eq. 14 and 15), or softmax(t / tau) of the sample. The pairwise term uses the
    logits themselves; T applies to the soft cross-entropy only, without a factor T^2. In adversarial training t are the
    logits of clean images and s those of perturbed images.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        weights: (B, C) or (C,), w, detached.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).
        temperature: T.

    >>> import torch
    >>> from kd_bench.losses import ikl
    >>> student, teacher = torch.zeros(1, 4), torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    >>> round(ikl(student, teacher, torch.full((4,), 0.25), alpha=8.0, beta=1.0).item(), 4)  # 8 * 1/2 * 1 + log 4
    5.3863
    """
    check_non_negative(alpha=alpha, beta=beta)
    return alpha * pairwise_mse(student_logits, teacher_logits, weights) + beta * soft_cross_entropy(
        student_logits, teacher_logits.detach(), temperature
    )


def gkl(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:
    """GKL: alpha * batch_pairwise_mse(s, t, w) + beta * soft_cross_entropy(s, stop(t), T).

    Cui et al., "Generalized Kullback-Leibler Divergence Loss" (2025), the successor of IKL by its authors, as released
    (DKLv2). The weights are powers of IKL's: the class-wise mean probabilities, or softmax(t / tau) of the sample, to
    the power gamma. The pairwise term uses the logits themselves; T applies to the soft cross-entropy only, without a
    factor T^2.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        weights: (B, C) or (C,), w, detached.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).
        temperature: T.

    >>> import torch
    >>> from kd_bench.losses import gkl
    >>> student, teacher = torch.zeros(1, 4), torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    >>> round(gkl(student, teacher, torch.ones(4), alpha=8.0, beta=1.0).item(), 4)  # 8 * 1/2 * 1 + log 4
    5.3863
    """
    check_non_negative(alpha=alpha, beta=beta)
    return alpha * batch_pairwise_mse(student_logits, teacher_logits, weights) + beta * soft_cross_entropy(
        student_logits, teacher_logits.detach(), temperature
    )


class _PairwiseMSE(torch.autograd.Function):
    """S sum_j w_j (d_j - mu)^2 of each row. The backward pass leaves out the gradient through mu, which is zero.

    Letting autograd compute that zero doubles the cost.
    """

    @staticmethod
    def forward(ctx: Any, difference: Tensor, weights: Tensor) -> Tensor:
        total = weights.sum(-1)
        centred = difference - ((weights * difference).sum(-1) / total)[:, None]
        # The first mean is rounded if the differences share a large constant; the second removes the rest.
        centred -= ((weights * centred).sum(-1) / total)[:, None]
        weighted = weights * centred
        ctx.save_for_backward(total, weighted, centred if ctx.needs_input_grad[1] else None)
        return total * (weighted * centred).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        total, weighted, centred = ctx.saved_tensors
        scale = grads[0]
        difference_grad = weighted * (2 * scale * total)[:, None]
        if centred is None:
            return difference_grad, None
        rows = (weighted * centred).sum(-1, keepdim=True)
        weights_grad = scale[:, None] * (rows + total[..., None] * centred.square())
        return difference_grad, weights_grad if total.ndim else weights_grad.sum(0)
