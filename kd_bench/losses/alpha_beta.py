"""The alpha-beta divergence of ABKD, and its limits as alpha, beta or their sum goes to 0."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.arguments import check_finite, check_logits, check_positive, check_sample_weights
from kd_bench.losses.precision import batch_mean, tempered

#: If alpha and beta are both smaller, the divergence is computed as a power series.
_SERIES_BELOW = 1e-3


def alpha_beta_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """sum_c [a / (a + b) p^(a + b) + b / (a + b) q^(a + b) - p^a q^b] / (a b), mean over the batch.

    Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence" (2025), with p = softmax(t / T), q = softmax(s / T), a = ``alpha`` and b =
    ``beta``. There is no factor T^2. It is at least 0, and 0 only for p = q. Its limits are

    * b = 0: sum_c [p^a log(p^a / q^a) - p^a + q^a] / a^2, which is KL(p || q) for a = 1;
    * a = 0: sum_c [q^b log(q^b / p^b) - q^b + p^b] / b^2, which is KL(q || p) for b = 1;
    * a = - b: sum_c [log(q^a / p^a) + p^a / q^a - 1] / a^2;
    * a = b = 0: sum_c (log p - log q)^2 / 2.

    All are one function, continuous in a and b: per class, with x = log p - log q, x^2 times the second divided
    difference of exp at (a + b) log p, a log p + b log q and (a + b) log q. It is computed as such, without
    cancellation near the limits. In the released code the first three limits are multiplied by a, b and a, so that they
    do not join up with the general form.

    If an exponent is negative, powers of small probabilities are large: in float32 they overflow if the logits of a
    network differ by about 88 T / |exponent|. Both sides have a gradient, but no second one.

    Args:
        student_logits, teacher_logits: (B, C), s and t.
        alpha, beta: a and b.
        temperature: T.
        sample_weights: (B,), factors of the samples' divergences before the mean; None for 1.

    >>> import torch
    >>> from kd_bench.losses import alpha_beta_divergence, kd
    >>> student, teacher = torch.randn(2, 3, 5)
    >>> divergence = alpha_beta_divergence(student, teacher, alpha=1.0, beta=0.0)
    >>> bool((divergence - kd(student, teacher, temperature=1.0)).abs() < 1e-6)
    True
    """
    check_logits(student_logits, teacher_logits)
    check_sample_weights(student_logits, sample_weights)
    check_finite(alpha=alpha, beta=beta)
    check_positive(temperature=temperature)
    log_q = F.log_softmax(tempered(student_logits, temperature), dim=-1)
    log_p = F.log_softmax(tempered(teacher_logits, temperature), dim=-1)
    divergences: Tensor = _AlphaBeta.apply(log_p, log_q, alpha, beta)
    return batch_mean(divergences, sample_weights)


class _AlphaBeta(torch.autograd.Function):
    """The divergence of each row as a function of log p and log q.

    Its derivatives are first divided differences of exp, which autograd would compute from quotients that cancel.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
        ctx.save_for_backward(log_p, log_q)
        ctx.exponents = alpha, beta
        x = log_p - log_q
        mixed = alpha * log_p + beta * log_q
        if max(abs(alpha), abs(beta)) < _SERIES_BELOW:
            cubic, quartic = (beta - alpha) / 6, (alpha**2 - alpha * beta + beta**2) / 24
            return (mixed.exp() * x.square() * (0.5 + x * (cubic + x * quartic))).sum(-1)
        # A second divided difference is the difference of two first ones, divided by the largest of the three gaps.
        total = alpha + beta
        student, teacher = total * log_q, total * log_p
        to_teacher, to_student = _slope(mixed, teacher, beta * x), _slope(mixed, student, alpha * x)
        across = _slope(student, teacher, total * x)
        largest = max(abs(alpha), abs(beta), abs(total))
        if largest == abs(total):
            return (x * (to_teacher - to_student)).sum(-1) / total
        if largest == abs(alpha):
            return (x * (to_teacher - across)).sum(-1) / alpha
        return (x * (across - to_student)).sum(-1) / beta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        log_p, log_q = ctx.saved_tensors
        alpha, beta = ctx.exponents
        total, scale, x = alpha + beta, grads[0][:, None], log_p - log_q
        mixed = alpha * log_p + beta * log_q
        teacher_grad = student_grad = None
        if ctx.needs_input_grad[0]:
            teacher_grad = scale * x * _slope(mixed, total * log_p, beta * x)
        if ctx.needs_input_grad[1]:
            student_grad = -scale * x * _slope(mixed, total * log_q, alpha * x)
        return teacher_grad, student_grad, None, None


def _slope(y: Tensor, z: Tensor, gap: Tensor) -> Tensor:
    """Returns (exp(y) - exp(z)) / (y - z), or exp(y) if they are equal; ``gap`` is y - z up to its sign."""
    gap = gap.abs()
    equal = gap == 0
    ratio = torch.where(equal, 1, -torch.expm1(-gap) / torch.where(equal, 1, gap))
    return torch.maximum(y, z).exp() * ratio
