"""Multi-level logit distillation: samples, the Gram matrices of images and of classes, at five temperatures."""

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_logits, check_positive, check_sample_weights, check_shapes
from kd_bench.losses.kl import kd
from kd_bench.losses.precision import at_least_float32, batch_mean, tempered
from kd_bench.losses.standardise import logit_standardise

Logits = tuple[Tensor, Tensor]


def batch_gram(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, sample_weights: Tensor | None = None
) -> Tensor:
    """||Q Q^T - P P^T||_F^2 / B: the student's and the teacher's similarities of the images of a batch.

    Jin, Wang and Lin, "Multi-Level Logit Distillation" (2023), without factor T^2, as released. Both sides have a
    gradient.

    Args:
        student_logits, teacher_logits: (B, C); Q and P are their softmaxes at T.
        temperature: T.
        sample_weights: (B,), factors of the rows of the matrix; None for 1.

    >>> import torch
    >>> from kd_bench.losses import batch_gram
    >>> student, teacher = torch.tensor([[900.0, 0.0], [0.0, 900.0]]), torch.tensor([[900.0, 0.0], [900.0, 0.0]])
    >>> batch_gram(student, teacher, temperature=1.0).item()  # two entries of the matrix differ by 1
    1.0
    """
    check_sample_weights(student_logits, sample_weights)
    difference, total = _difference_and_sum(student_logits, teacher_logits, temperature)
    products = difference @ total.T
    rows = ((products + products.T) / 2).square().sum(-1)  # Q Q^T - P P^T, without subtracting what is almost equal
    return batch_mean(rows, sample_weights).to(at_least_float32(student_logits).dtype)


def class_gram(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, class_weights: Tensor | None = None
) -> Tensor:
    """||Q^T Q - P^T P||_F^2 / C: the student's and the teacher's similarities of the classes over a batch.

    Jin, Wang and Lin (2023), without factor T^2, as released. The entries are sums over the batch, so they depend on
    its size. Computed from (B, B) products, without the (C, C) matrices. Both sides have a gradient.

    Args:
        student_logits, teacher_logits: (B, C); Q and P are their softmaxes at T.
        temperature: T.
        class_weights: (C,), factors of the rows of the matrix; None for 1.

    >>> import torch
    >>> from kd_bench.losses import class_gram
    >>> student, teacher = torch.tensor([[900.0, 0.0], [0.0, 900.0]]), torch.tensor([[900.0, 0.0], [900.0, 0.0]])
    >>> class_gram(student, teacher, temperature=1.0).item()  # diag(1, 1) against diag(2, 0)
    1.0
    """
    if class_weights is not None:
        check_shapes(student_logits=(student_logits, "B C"), class_weights=(class_weights, "C"))
    difference, total = _difference_and_sum(student_logits, teacher_logits, temperature)
    # With D and S the difference and the sum, 4 ||Q^T Q - P^T P||^2 = ||D^T S + S^T D||^2, which is multiplied out.
    dd, ss, sd = difference @ difference.T, total @ total.T, total @ difference.T
    if class_weights is None:
        squares = 2 * (dd * ss + sd * sd.T)
    else:
        weighted_total = class_weights * total
        squares = ((class_weights * difference) @ difference.T) * ss + (weighted_total @ total.T) * dd
        squares = squares + 2 * (weighted_total @ difference.T) * sd.T
    return squares.sum().div(4 * difference.shape[-1]).to(at_least_float32(student_logits).dtype)


def mlkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    strong: Logits | None = None,
    as_released: bool = True,
    standardise: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """MLKD's terms for samples, batch and classes, each summed over the temperatures T, 3, 5, 2 and 6.

    Jin, Wang and Lin (2023). KL is ``kd``, with T^2. A mask selects the samples whose largest teacher probability in
    the weak view is at most its median over the batch, another one the classes whose teacher probability, summed over
    the batch, is at most its median.

    The released code multiplies numbers that are averages already by the masks, so that instead of selecting they are
    replaced by the share of what they select, about 1/2; its strong view's KL at T = 2 and 6 reads the weak view; and
    its strong view's terms for batch and classes are dropped. ``as_released`` = False is our reading of the intention:
    the masks select (samples in the KL of the weak view and the rows of ``batch_gram`` of both views, classes in the
    rows of ``class_gram`` of the weak view), and every term reads its own view.

    Args:
        student_logits, teacher_logits: (B, C), of the weak view, or of the only one.
        temperature: T.
        strong: The logits of student and teacher for the strong view, (B, C) each; None without one.
        as_released: Whether to compute what the released code does.
        standardise: Whether KL is computed from standardised logits (``logit_standardise``). The other terms and the
            masks never are.

    >>> import torch
    >>> from kd_bench.losses import mlkd_terms, kd
    >>> student, teacher = torch.randn(2, 4, 5)
    >>> samples, batch, classes = mlkd_terms(student, teacher)  # a mask's share is 1/2
    >>> half = sum(kd(student, teacher, temperature) for temperature in (4.0, 3.0, 5.0, 2.0, 6.0)) / 2
    >>> bool((samples - half).abs() < 1e-5)
    True
    """
    weak, temperatures = (student_logits, teacher_logits), (temperature, 3.0, 5.0, 2.0, 6.0)
    samples_mask, classes_mask = _masks(teacher_logits)
    to_kl = _standardised if standardise else _unchanged

    if as_released:
        samples_share, classes_share = samples_mask.mean(), classes_mask.mean()
        samples = samples_share * _sum([kd(*to_kl(weak), t) for t in temperatures])
        if strong is not None:
            views = (strong, strong, strong, weak, weak)
            samples = samples + _sum([kd(*to_kl(view), t) for view, t in zip(views, temperatures, strict=True)])
        batch = samples_share * _sum([batch_gram(*weak, t) for t in temperatures])
        return samples, batch, classes_share * _sum([class_gram(*weak, t) for t in temperatures])

    samples = _sum([kd(*to_kl(weak), t, samples_mask) for t in temperatures])
    batch = _sum([batch_gram(*weak, t, samples_mask) for t in temperatures])
    classes = _sum([class_gram(*weak, t, classes_mask) for t in temperatures])
    if strong is not None:
        samples = samples + _sum([kd(*to_kl(strong), t) for t in temperatures])
        batch = batch + _sum([batch_gram(*strong, t, samples_mask) for t in temperatures])
        classes = classes + _sum([class_gram(*strong, t) for t in temperatures])
    return samples, batch, classes


def _difference_and_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Logits:
    """Returns Q - P and Q + P, in float64, because autocast would compute products of float32 in half precision."""
    check_logits(student_logits, teacher_logits)
    check_positive(temperature=temperature)
    q, p = tempered(student_logits, temperature).softmax(-1), tempered(teacher_logits, temperature).softmax(-1)
    return q.double() - p.double(), q.double() + p.double()


@torch.no_grad()
def _masks(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the masks of samples, (B,), and of classes, (C,), as numbers 0 and 1."""
    probabilities = at_least_float32(teacher_logits).softmax(-1)
    return _at_most_median(probabilities.amax(-1)), _at_most_median(probabilities.sum(0))


def _at_most_median(values: Tensor) -> Tensor:
    """Returns 1 where a value is at most the median, which is the mean of the two middle values of an even number."""
    ordered, size = values.sort().values, len(values)
    return (values <= (ordered[(size - 1) // 2] + ordered[size // 2]) / 2).to(values.dtype)


def _standardised(logits: Logits) -> Logits:
    return logit_standardise(logits[0]), logit_standardise(logits[1])


def _unchanged(logits: Logits) -> Logits:
    return logits


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()
