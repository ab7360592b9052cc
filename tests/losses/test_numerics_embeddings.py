"""Losses of embeddings and feature maps: few bits, large values, common shifts, and what coincides."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench import losses
from tests.losses import direct
from tests.losses.cases import (
    LargestTensor,
    assert_autocast_changes_nothing,
    assert_double_stays,
    assert_finite,
    assert_half_is_computed_in_single,
    assert_single_is_close_to_double,
    draw,
    value_and_gradients,
)

BANK = F.normalize(draw(100, 30, 12)).float()
INDEX = torch.randint(30, (8, 11), generator=torch.Generator().manual_seed(0))
MARGIN = -draw(101, 3).abs().float()


def _contrast(student: Tensor, teacher: Tensor) -> Tensor:
    bank = BANK.to(losses.at_least_float32(student).dtype)
    log_z = torch.tensor(4.0, dtype=bank.dtype)
    return losses.contrast(student, bank, INDEX[: len(student)], log_z, 0.07) + 0 * teacher.float().sum()


def _maps(embeddings: Tensor) -> Tensor:
    """The 12 numbers of an embedding as a feature map of 3 channels."""
    return embeddings.view(-1, 3, 2, 2)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd_distance": losses.rkd_distance,
    "rkd_distance squared": lambda s, t: losses.rkd_distance(s, t, squared=True),
    "rkd_angle": losses.rkd_angle,
    "dist inter": lambda s, t: losses.dist_terms(s, t, 4.0)[0],
    "dist intra": lambda s, t: losses.dist_terms(s, t, 4.0)[1],
    "contrast": _contrast,
    "partial_l2": lambda s, t: losses.partial_l2(_maps(s), _maps(t), MARGIN),
    "hierarchical_context": lambda s, t: losses.hierarchical_context(_maps(s), _maps(t)),
}
SHIFTS = ["rkd_distance", "rkd_distance squared", "rkd_angle"]
every_loss = pytest.mark.parametrize("name", LOSSES)


def _usual(name: str, seed: int) -> tuple[Tensor, Tensor]:
    student, teacher = draw(seed, 2, 8, 12)
    return (F.normalize(student), teacher) if name == "contrast" else (student, teacher)


@every_loss
def test_single_precision_is_close_to_double(name: str) -> None:
    assert_single_is_close_to_double(LOSSES[name], *(x.float() for x in _usual(name, 1)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_for_values_of_ten_thousand(name: str, dtype: torch.dtype) -> None:
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 12).sign() * 1e4).to(dtype))
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 12) * 1e4).to(dtype))


@every_loss
@pytest.mark.parametrize(
    ("dtype", "duplicated"),
    list(product([torch.float64, torch.float32, torch.bfloat16], ["some", "all", "all of the student", "zeros"])),
)
def test_finite_where_embeddings_coincide(name: str, dtype: torch.dtype, duplicated: str) -> None:
    student, teacher = draw(3, 2, 8, 12)
    if duplicated == "some":
        student[4:], teacher[4:] = student[:4], teacher[:4]
    elif duplicated == "zeros":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    else:
        student = student[:1].repeat(8, 1)
        teacher = teacher[:1].repeat(8, 1) if duplicated == "all" else teacher
    assert_finite(LOSSES[name], student.to(dtype), teacher.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [12, 961])
def test_duplicates_have_no_directions(dtype: torch.dtype, width: int) -> None:
    """Where the published form's gradient is one of 1e12, ours is no larger than that of the others."""
    student, teacher = draw(4, 2, 8, width).to(dtype)
    student[4:] = student[:4]
    value, gradient, _ = value_and_gradients(losses.rkd_angle, student, teacher)
    reference, exploding, _ = value_and_gradients(direct.rkd_angle, student, teacher)
    torch.testing.assert_close(value, reference, rtol=1e-5, atol=0)
    assert gradient.abs().max() < 1
    assert exploding.abs().max() > 1e6


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("closeness", [1e-2, 1e-3])
def test_close_embeddings_keep_their_digits(name: str, closeness: float) -> None:
    """Inner products in float32 would leave 7 % of error in the gradient of the angles."""
    student, teacher = draw(5, 2, 16, 256)
    student[8:] = student[:8] + closeness * draw(6, 8, 256)
    student, teacher = student.float(), teacher.float()
    value, gradient, _ = value_and_gradients(LOSSES[name], student, teacher)
    exact, expected, _ = value_and_gradients(LOSSES[name], student.double(), teacher.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    assert (gradient - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("shift", [1e3, 1e4])
@pytest.mark.parametrize("shifted", ["student", "teacher", "both"])
def test_a_common_shift_changes_nothing(name: str, shift: float, shifted: str) -> None:
    """In float32; the embeddings are multiples of 1/16, so that adding the shift is exact."""
    student, teacher = (draw(7, 2, 8, 12) * 16).round().float() / 16
    moved = (student + shift * (shifted != "teacher"), teacher + shift * (shifted != "student"))
    for before, after in zip(
        value_and_gradients(LOSSES[name], student, teacher), value_and_gradients(LOSSES[name], *moved), strict=True
    ):
        assert (after - before).abs().max() <= 1e-6 * before.abs().max()


@pytest.mark.parametrize("term", ["dist inter", "dist intra"])
@pytest.mark.parametrize("shift", [1e3, 1e4])
def test_dist_does_not_see_a_shift_of_logits(term: str, shift: float) -> None:
    student, teacher = (draw(8, 2, 8, 12) * 16).round().float() / 16
    before = value_and_gradients(LOSSES[term], student, teacher)
    after = value_and_gradients(LOSSES[term], student + shift, teacher - shift)
    for actual, reference in zip(after, before, strict=True):
        assert (actual - reference).abs().max() <= 1e-6 * reference.abs().max()


@pytest.mark.parametrize("term", ["dist inter", "dist intra"])
def test_dist_of_constant_columns_and_rows(term: str) -> None:
    """A constant correlates with nothing; the others are not disturbed."""
    student, teacher = draw(9, 2, 8, 12).float()
    constant = student.clone()
    constant[2] = 0.5  # all classes of one image alike
    assert_finite(LOSSES[term], constant, teacher)
    certain = student.clone()
    certain[:, 0], certain[:, 1:] = 1e4, 0  # every class has the same probability, 0 or 1, for all images
    value, *_ = value_and_gradients(LOSSES[term], certain, teacher)
    assert_finite(LOSSES[term], certain, teacher)
    if term == "dist intra":
        assert value == 1


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_of_one(name: str, dtype: torch.dtype) -> None:
    student, teacher = (x[:1].to(dtype) for x in _usual(name, 10))
    assert_finite(LOSSES[name], student, teacher)
    if name in SHIFTS:  # which have no pairs
        assert all(result.abs().max() == 0 for result in value_and_gradients(LOSSES[name], student, teacher))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    assert_half_is_computed_in_single(LOSSES[name], *(x.to(dtype) for x in _usual(name, 11)))


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    assert_autocast_changes_nothing(LOSSES[name], *(x.float() for x in _usual(name, 12)))


@every_loss
def test_double_precision_stays(name: str) -> None:
    assert_double_stays(LOSSES[name], *_usual(name, 13))


@pytest.mark.parametrize("rows", [30, 200], ids=["product", "copies"])
def test_a_bank_may_change_before_the_gradient_is_taken(rows: int) -> None:
    """CRD updates its banks in its forward."""
    anchors = F.normalize(draw(14, 8, 12)).float()
    bank, log_z = F.normalize(draw(15, rows, 12)).float(), torch.tensor(4.0)
    _, expected = value_and_gradients(lambda a: losses.contrast(a, bank, INDEX, log_z, 0.07), anchors)
    anchors.requires_grad_()
    loss = losses.contrast(anchors, bank, INDEX, log_z, 0.07)
    bank.zero_()
    log_z.fill_(float("nan"))
    loss.backward()
    assert torch.equal(anchors.grad, expected)


def test_contrast_under_autocast_with_half_precision_anchors() -> None:
    anchors = F.normalize(draw(16, 8, 12)).bfloat16()
    expected = value_and_gradients(lambda a: _contrast(a, a.detach()), anchors)
    with torch.autocast("cpu", torch.bfloat16):
        values = value_and_gradients(lambda a: _contrast(a, a.detach()), anchors)
    assert all(torch.equal(actual, reference) for actual, reference in zip(values, expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        z = [losses.log_normaliser(x, BANK, INDEX, 0.07) for x in (anchors, anchors.float())]
    assert z[0].dtype == torch.float32
    assert z[0] == z[1]


def test_probabilities_that_round_to_zero_and_one_do_not_hurt_contrast() -> None:
    """Published code takes logarithms of them."""
    anchors = 1e4 * F.normalize(draw(17, 8, 12))
    single = value_and_gradients(lambda a: _contrast(a, a.detach()), anchors.float())
    double = value_and_gradients(lambda a: _contrast(a, a.detach()), anchors)
    for actual, reference in zip(single, double, strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize(
    ("name", "most"),
    [("rkd_distance", 8 * 2000), ("rkd_angle", 8 * 2000), ("dist inter", 8 * 2000), ("dist intra", 8 * 2000)],
)
def test_nothing_is_larger_than_the_embeddings(name: str, most: int) -> None:
    """Differences of all pairs would take 8 times as much; 8^3 cosines do not."""
    student, teacher = draw(18, 2, 8, 2000).float()
    with LargestTensor() as largest:
        value_and_gradients(LOSSES[name], student, teacher)
    assert largest.elements == most


def test_contrast_copies_no_rows_of_a_bank_that_is_not_much_larger() -> None:
    anchors, bank = F.normalize(draw(19, 8, 12)).float(), F.normalize(draw(20, 80, 12)).float()
    with LargestTensor() as largest:
        value_and_gradients(lambda a: losses.contrast(a, bank, INDEX, torch.tensor(4.0), 0.07), anchors)
    assert largest.elements == bank.numel()  # where copies would be 8 * 11 * 12 numbers
