"""Closed and stable forms against the definitions, in float64, values and gradients to both sides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_bench import losses
from tests.losses import naive
from tests.losses.cases import assert_same, batches, classes, draw, scales, seeds, temperatures, value_and_gradients


@given(seeds, batches, classes, scales, temperatures)
def test_kd(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    assert_same(lambda s, t: losses.kd(s, t, temperature), lambda s, t: naive.kd(s, t, temperature), student, teacher)


@given(seeds, batches, classes, scales, temperatures)
def test_soft_cross_entropy(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    assert_same(
        lambda s, t: losses.soft_cross_entropy(s, t, temperature),
        lambda s, t: naive.soft_cross_entropy(s, t, temperature),
        student,
        teacher,
    )


@pytest.mark.parametrize("term", [0, 1], ids=["tckd", "nckd"])
@given(seed=seeds, b=batches, c=classes, scale=st.floats(1e-3, 3), temperature=st.floats(1, 10))
def test_dkd_terms(term: int, seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    labels = torch.randint(c, (b,), generator=torch.Generator().manual_seed(seed))
    assert_same(
        lambda s, t: losses.dkd_terms(s, t, labels, temperature)[term],
        lambda s, t: naive.dkd_terms(s, t, labels, temperature)[term],
        student,
        teacher,
    )


@given(seeds, classes, scales, temperatures)
def test_the_terms_of_dkd_add_up_to_kd(seed: int, c: int, scale: float, temperature: float) -> None:
    """KL = TCKD + (1 - p_y) NCKD, eq. 6 of the paper, sample by sample."""
    student, teacher = draw(seed, 2, 1, c, scale=scale)
    labels = torch.tensor([seed % c])
    others = 1 - (teacher / temperature).softmax(-1)[0, seed % c]
    tckd, nckd = losses.dkd_terms(student, teacher, labels, temperature)
    torch.testing.assert_close(tckd + others * nckd, losses.kd(student, teacher, temperature), rtol=1e-9, atol=1e-12)


def test_dkd_weighs_its_terms() -> None:
    student, teacher, labels = *draw(0, 2, 4, 7), torch.tensor([0, 6, 3, 3])
    tckd, nckd = losses.dkd_terms(student, teacher, labels, 4.0)
    assert losses.dkd(student, teacher, labels, 0.5, 8.0, 4.0) == 0.5 * tckd + 8.0 * nckd
    assert tckd > 0
    assert nckd > 0


@given(seeds, batches, classes, scales, st.booleans(), st.floats(0.1, 10))
def test_pairwise_mse(seed: int, b: int, c: int, scale: float, per_sample: bool, total: float) -> None:
    """Weights need not sum to one; the gradient with respect to them is compared too."""
    student, teacher = draw(seed, 2, b, c, scale=scale)
    weights = total * draw(seed + 1, b, c).softmax(-1) if per_sample else total * draw(seed + 1, c).softmax(-1)
    assert_same(losses.pairwise_mse, naive.pairwise_mse, student, teacher, weights)


def test_pairwise_mse_passes_gradcheck() -> None:
    student, teacher = (logits.requires_grad_() for logits in draw(1, 2, 3, 5))
    for weights in (draw(2, 3, 5).softmax(-1).requires_grad_(), draw(2, 5).softmax(-1).requires_grad_()):
        assert torch.autograd.gradcheck(lambda s, t, w: 3 * losses.pairwise_mse(s, t, w), (student, teacher, weights))


@given(seeds, batches, classes)
def test_pairwise_mse_of_one_certain_class_is_zero(seed: int, b: int, c: int) -> None:
    student, teacher = draw(seed, 2, b, c)
    certain = torch.nn.functional.one_hot(torch.full((b,), seed % c), c).double()
    assert losses.pairwise_mse(student, teacher, certain).item() == 0


@given(seeds, batches, classes, scales)
def test_uniform_weights_give_half_the_variance(seed: int, b: int, c: int, scale: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    uniform = torch.full((c,), 1 / c, dtype=torch.float64)
    expected = 0.5 * (teacher - student).var(-1, correction=0).mean()
    torch.testing.assert_close(losses.pairwise_mse(student, teacher, uniform), expected)


@given(seeds, batches, classes, scales)
def test_lemma_1(seed: int, b: int, c: int, scale: float) -> None:
    """DKL has the gradients of KL on both sides (appendix A.1), though not its value."""
    student, teacher = draw(seed, 2, b, c, scale=scale)
    _, to_student, to_teacher = value_and_gradients(losses.dkl, student, teacher)
    _, kl_to_student, kl_to_teacher = value_and_gradients(lambda s, t: naive.kd(s, t, 1.0), student, teacher)
    torch.testing.assert_close(to_student, kl_to_student, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(to_teacher, kl_to_teacher, rtol=1e-9, atol=1e-12)


def test_dkl_sends_each_term_to_one_side() -> None:
    student, teacher = draw(3, 2, 4, 6)
    _, to_student, to_teacher = value_and_gradients(lambda s, t: losses.dkl(s, t, 1.0, 0.0), student, teacher)
    assert to_student.abs().max() == 0
    assert to_teacher.abs().max() > 0
    _, to_student, to_teacher = value_and_gradients(lambda s, t: losses.dkl(s, t, 0.0, 1.0), student, teacher)
    assert to_student.abs().max() > 0
    assert to_teacher.abs().max() == 0


def test_dkl_weighs_its_terms() -> None:
    student, teacher = draw(4, 2, 3, 5)
    pairwise, soft = losses.dkl(student, teacher, 1.0, 0.0), losses.dkl(student, teacher, 0.0, 1.0)
    torch.testing.assert_close(pairwise, naive.pairwise_mse(student, teacher, teacher.softmax(-1)))
    torch.testing.assert_close(soft, naive.soft_cross_entropy(student, teacher, 1.0))
    torch.testing.assert_close(losses.dkl(student, teacher, 20.0, 3.0), 20 * pairwise + 3 * soft)


@given(seeds, batches, classes, scales, temperatures)
def test_ikl(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    weights = draw(seed + 1, b, c).softmax(-1)

    def definition(s: Tensor, t: Tensor) -> Tensor:
        soft = naive.soft_cross_entropy(s, t.detach(), temperature)
        return 8.0 * naive.pairwise_mse(s, t, weights) + 3.0 * soft

    assert_same(lambda s, t: losses.ikl(s, t, weights, 8.0, 3.0, temperature), definition, student, teacher)


def test_cross_entropy_takes_indices_and_mixed_labels() -> None:
    logits, labels = draw(5, 4, 3), torch.tensor([0, 2, 1, 1])
    one_hot = torch.nn.functional.one_hot(labels, 3)
    expected = -logits.log_softmax(-1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(losses.cross_entropy(logits, labels), expected)
    torch.testing.assert_close(losses.cross_entropy(logits, one_hot.float()), expected)
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    torch.testing.assert_close(losses.cross_entropy(logits, mixed), -(mixed * logits.log_softmax(-1)).sum(-1).mean())
