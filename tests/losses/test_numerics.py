"""Large logits, few bits, constant shifts, many classes."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from kd_bench import losses
from tests.losses.cases import (
    LargestTensor,
    assert_autocast_changes_nothing,
    assert_double_stays,
    assert_finite,
    assert_half_is_computed_in_single,
    draw,
    value_and_gradients,
)

LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def _weights(teacher: Tensor) -> Tensor:
    return losses.at_least_float32(teacher.detach()).softmax(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kd": lambda s, t: losses.kd(s, t, 3.0),
    "soft_cross_entropy": lambda s, t: losses.soft_cross_entropy(s, t, 3.0),
    "tckd": lambda s, t: losses.dkd_terms(s, t, LABELS, 3.0)[0],
    "nckd": lambda s, t: losses.dkd_terms(s, t, LABELS, 3.0)[1],
    "pairwise_mse": lambda s, t: losses.pairwise_mse(s, t, _weights(t)),
    "dkl": losses.dkl,
    "ikl": lambda s, t: losses.ikl(s, t, _weights(t), 8.0, 1.0, 3.0),
    "cross_entropy": lambda s, t: losses.cross_entropy(s, LABELS) + 0 * t.float().sum(),
    "kd of samples with weights": lambda s, t: losses.kd(s, t, 3.0, losses.entropy_weights(s, t)),
    "kd with a learned temperature": lambda s, t: losses.kd(s, t, torch.tensor(3.0)),
    "kd of standardised logits": lambda s, t: losses.kd(losses.logit_standardise(s), losses.logit_standardise(t), 3.0),
    "ttm": lambda s, t: losses.ttm(s, t, 0.1),
    "wttm": lambda s, t: losses.wttm(s, t, 0.2),
    "nkd target": lambda s, t: losses.nkd_terms(s, t, LABELS, 3.0)[0],
    "nkd others": lambda s, t: losses.nkd_terms(s, t, LABELS, 3.0)[1],
    "rld scd": lambda s, t: losses.rld_terms(s, t, LABELS, 3.0, 1.0)[0],
    "rld mcd": lambda s, t: losses.rld_terms(s, t, LABELS, 3.0, 1.0)[1],
    "gkl": lambda s, t: losses.gkl(s, t, _weights(t).sqrt(), 8.0, 1.0, 3.0),
    "alpha_beta": lambda s, t: losses.alpha_beta_divergence(s, t, 0.8, 0.3, 3.0),
    "alpha_beta kl": lambda s, t: losses.alpha_beta_divergence(s, t, 1.0, 0.0, 3.0),
    "alpha_beta reverse kl": lambda s, t: losses.alpha_beta_divergence(s, t, 0.0, 1.0, 3.0),
    "alpha_beta squares": lambda s, t: losses.alpha_beta_divergence(s, t, 0.0, 0.0, 3.0),
    "batch_gram": lambda s, t: losses.batch_gram(s, t, 3.0),
    "class_gram": lambda s, t: losses.class_gram(s, t, 3.0),
    "mlkd": lambda s, t: torch.stack(losses.mlkd_terms(s, t)).sum(),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize(("dtype", "classes"), list(product([torch.float32, torch.bfloat16, torch.float16], [2, 10])))
def test_finite_for_logits_of_ten_thousand(name: str, dtype: torch.dtype, classes: int) -> None:
    logits = (draw(1, 2, 8, classes).sign() * 1e4).to(dtype)
    logits[:, :, 0] = 0
    assert_finite(LOSSES[name], *logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_classes_have_no_others_to_compare(dtype: torch.dtype) -> None:
    value, *gradients = value_and_gradients(LOSSES["nckd"], *draw(2, 2, 8, 2, scale=5).to(dtype))
    assert value.item() == 0
    assert all(gradient.abs().max().item() == 0 for gradient in gradients)


@every_loss
def test_a_certain_teacher_and_a_student_certain_of_another_class(name: str) -> None:
    """Probabilities that round to 0 and 1: the value is that of float64, where they do not."""
    teacher, student = torch.zeros(8, 3), torch.zeros(8, 3)
    teacher[torch.arange(8), LABELS] = 120.0
    student[torch.arange(8), 1 - LABELS] = 120.0
    single, *gradients = value_and_gradients(LOSSES[name], student, teacher)
    double, *expected = value_and_gradients(LOSSES[name], student.double(), teacher.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
    for actual, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("shifted", ["student", "teacher", "both"])
def test_a_common_shift_changes_nothing(name: str, shifted: str) -> None:
    """In float32; the logits are multiples of 1/16, so that adding 1000 to them is exact."""
    student, teacher = (draw(3, 2, 8, 10, scale=3) * 16).round().float() / 16
    moved = (student + 1000 * (shifted != "teacher"), teacher + 1000 * (shifted != "student"))
    for before, after in zip(
        value_and_gradients(LOSSES[name], student, teacher), value_and_gradients(LOSSES[name], *moved), strict=True
    ):
        difference = (after - before).abs().max().item()
        assert difference <= 1e-6 * before.abs().max().item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("shift", [1e3, 1e4])
def test_a_common_shift_changes_nothing_at_any_temperature(temperature: float, shift: float) -> None:
    student, teacher = (draw(8, 2, 8, 10, scale=3) * 16).round().float() / 16
    for loss in (losses.kd, losses.soft_cross_entropy):
        before = value_and_gradients(lambda s, t, loss=loss: loss(s, t, temperature), student, teacher)
        after = value_and_gradients(lambda s, t, loss=loss: loss(s, t, temperature), student + shift, teacher - shift)
        for actual, reference in zip(after, before, strict=True):
            assert (actual - reference).abs().max() <= 1e-6 * reference.abs().max()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    assert_half_is_computed_in_single(LOSSES[name], *draw(4, 2, 8, 10, scale=3).to(dtype))


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    assert_autocast_changes_nothing(LOSSES[name], *draw(5, 2, 8, 10, scale=3).float())


@every_loss
def test_double_precision_stays(name: str) -> None:
    assert_double_stays(LOSSES[name], *draw(6, 2, 8, 4))


@every_loss
def test_nothing_is_larger_than_the_logits(name: str) -> None:
    """With the classes of ImageNet-21k, where the pairs of one batch of 8 would take 15 GB."""
    student, teacher = draw(7, 2, 8, 21_841, scale=3).float()
    with LargestTensor() as largest:
        results = value_and_gradients(LOSSES[name], student, teacher)
    assert largest.elements == 8 * 21_841
    assert all(math.isfinite(result.sum().item()) for result in results)
