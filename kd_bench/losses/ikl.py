"""The Kullback-Leibler divergence decoupled (DKL) and improved (IKL), in closed form.

Both are a quadratic term on differences of logits, which carries the gradient of the teacher's side, plus a soft
cross-entropy, which carries the student's. ``alpha`` weighs the first and ``beta`` the second, as in the paper (Cui et
al., "Decoupled Kullback-Leibler Divergence Loss", appendix eq. 12 to 15); the authors' released code has the two
letters the other way round.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.kl import soft_cross_entropy
from kd_bench.losses.precision import at_least_float32


def pairwise_mse(student_logits: Tensor, teacher_logits: Tensor, weights: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2, mean over the batch, in O(B C) time and memory.

    With d = t - s, S = sum w and mu = sum(w d) / S the sum over pairs equals 1/2 S sum_j w_j (d_j - mu)^2: half the
    weighted variance of d where the weights sum to one. Centring before squaring keeps the precision when teacher and
    student differ by a large constant. The gradient goes to everything that requires one, the weights included: detach
    what shall have none. It cannot be differentiated twice.

    Args:
        student_logits: (B, C), s.
        teacher_logits: (B, C), t.
        weights: (B, C) or (C,), w >= 0 with a positive sum in each row.

    >>> import torch
    >>> from kd_bench.losses import pairwise_mse
    >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 6.0]])
    >>> pairwise_mse(student, teacher, torch.full((3,), 1 / 3)).item()  # half the variance, which is 6
    3.0
    """
    difference, weights = at_least_float32(teacher_logits) - at_least_float32(student_logits), at_least_float32(weights)
    loss: Tensor = _PairwiseMSE.apply(difference, weights)
    return loss


def dkl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """DKL: with ``alpha`` = ``beta`` = 1 its gradients, to both sides, are those of KL(softmax(t) || softmax(s)).

    alpha * pairwise_mse(stop(s), t, stop(softmax(t))) + beta * soft_cross_entropy(s, stop(t)). That the gradients are
    equal is Lemma 1 (appendix A.1, eq. 12 and 13, where t is o_m and s is o_n); the values are not. A teacher that is
    not trained leaves the student nothing but the soft cross-entropy, which is what IKL mends.

    Args:
        student_logits: (B, C), s.
        teacher_logits: (B, C), t.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).

    >>> import torch
    >>> from kd_bench.losses import dkl, kd
    >>> student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    >>> ours = torch.autograd.grad(dkl(student, teacher), (student, teacher))
    >>> theirs = torch.autograd.grad(kd(student, teacher, temperature=1.0), (student, teacher))
    >>> [bool(torch.allclose(a, b, atol=1e-6)) for a, b in zip(ours, theirs)]
    [True, True]
    """
    weights = at_least_float32(teacher_logits).detach().softmax(-1)
    return alpha * pairwise_mse(student_logits.detach(), teacher_logits, weights) + beta * soft_cross_entropy(
        student_logits, teacher_logits.detach()
    )


def ikl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
) -> Tensor:
    """IKL: alpha * pairwise_mse(s, t, w) + beta * soft_cross_entropy(s, stop(t), T).

    Against DKL the gradient of the pairwise term reaches the student too, and the weights are given: rows of class-wise
    mean probabilities in the paper (appendix eq. 14 and 15), or softmax(t / tau) of the sample itself. The pairwise
    term reads the raw logits; T is of the soft cross-entropy only, without a factor T^2. In adversarial training t are
    the logits of the clean images and s those of the perturbed ones, and both sides learn.

    Args:
        student_logits: (B, C), s.
        teacher_logits: (B, C), t.
        weights: (B, C) or (C,), w; as for ``pairwise_mse`` the caller detaches them.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).
        temperature: T.

    >>> import torch
    >>> from kd_bench.losses import ikl
    >>> student, teacher = torch.zeros(1, 4), torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    >>> round(ikl(student, teacher, torch.full((4,), 0.25), alpha=8.0, beta=1.0).item(), 4)  # 8 * 1/2 * 1 + log 4
    5.3863
    """
    return alpha * pairwise_mse(student_logits, teacher_logits, weights) + beta * soft_cross_entropy(
        student_logits, teacher_logits.detach(), temperature
    )


class _PairwiseMSE(torch.autograd.Function):
    """Of d and w. That mu has no part in the gradient, autograd would find out at half of the time of it all."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, weights: Tensor) -> Tensor:
        total = weights.sum(-1)
        centred = difference - ((weights * difference).sum(-1) / total)[:, None]
        # The mean of what has a large constant is rounded; the rest is found when that constant is gone.
        centred -= ((weights * centred).sum(-1) / total)[:, None]
        weighted = weights * centred
        ctx.save_for_backward(total, weighted, centred if ctx.needs_input_grad[1] else None)
        return 0.5 * (total * (weighted * centred).sum(-1)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        total, weighted, centred = ctx.saved_tensors
        scale = grads[0] / len(weighted)
        to_difference = weighted * (scale * total)[..., None]
        if centred is None:
            return to_difference, None
        rows = (weighted * centred).sum(-1, keepdim=True)
        to_weights = 0.5 * scale * (rows + total[..., None] * centred.square())
        return to_difference, to_weights if total.ndim else to_weights.sum(0)
