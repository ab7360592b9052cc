"""Cheaper forms against the direct ones of published code, in float64: values and gradients to all inputs."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_bench import losses
from kd_bench.losses import crd
from tests.losses import direct, naive
from tests.losses.cases import assert_same, batches, classes, draw, scales, seeds, temperatures, value_and_gradients

widths = st.integers(1, 9)
several = st.integers(2, 7)


@given(seeds, batches, classes, scales, temperatures)
def test_kd(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    assert_same(lambda s, t: losses.kd(s, t, temperature), lambda s, t: direct.kd(s, t, temperature), student, teacher)


@given(seeds, batches, classes, st.floats(1e-3, 3), st.floats(1, 10))
def test_dkd(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    """The direct form's gradient to the teacher is not a number."""
    student, teacher = draw(seed, 2, b, c, scale=scale)
    labels = torch.randint(c, (b,), generator=torch.Generator().manual_seed(seed))
    assert_same(
        lambda s: losses.dkd(s, teacher, labels, 1.0, 8.0, temperature),
        lambda s: direct.dkd(s, teacher, labels, 1.0, 8.0, temperature),
        student,
    )


@given(seeds, batches, classes, scales, temperatures)
def test_ikl(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    assert_same(
        lambda s, t, w: losses.ikl(s, t, w, 8.0, 3.0, temperature),
        lambda s, t, w: direct.ikl(s, t, w, 8.0, 3.0, temperature),
        student,
        teacher,
        draw(seed + 1, b, c).softmax(-1),
    )


@given(seeds, batches, classes, scales, temperatures)
def test_gkl(seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    assert_same(
        lambda s, t, w: losses.gkl(s, t, w, 8.0, 3.0, temperature),
        lambda s, t, w: direct.gkl(s, t, w, 8.0, 3.0, temperature),
        student,
        teacher,
        draw(seed + 1, b, c).softmax(-1),
    )


@pytest.mark.parametrize("term", [0, 1], ids=["inter", "intra"])
@given(seed=seeds, b=several, c=classes, scale=st.floats(0.1, 3), temperature=st.floats(0.5, 4))
def test_dist(term: int, seed: int, b: int, c: int, scale: float, temperature: float) -> None:
    student, teacher = draw(seed, 2, b, c, scale=scale)
    for reference in (naive.dist_terms, direct.dist_terms):
        assert_same(
            lambda s, t: losses.dist_terms(s, t, temperature)[term],
            lambda s, t, reference=reference: reference(s, t, temperature)[term],
            student,
            teacher,
            rtol=1e-7,  # a row or column may be all but constant
        )


@given(seeds, several, widths, widths, scales, st.booleans(), st.sampled_from([0.0, 30.0]))
def test_rkd_distance(seed: int, b: int, d: int, e: int, scale: float, squared: bool, shift: float) -> None:
    student, teacher = draw(seed, b, d, scale=scale) + shift, draw(seed + 1, b, e)
    assert_same(
        lambda s: losses.rkd_distance(s, teacher, squared),
        lambda s: direct.rkd_distance(s, teacher, squared),
        student,
        rtol=1e-7,
    )


# In one dimension all angles are flat, and their gradient is only rounding error.
@given(seeds, st.integers(1, 7), st.integers(2, 9), widths, scales, st.sampled_from([0.0, 30.0]))
def test_rkd_angle(seed: int, b: int, d: int, e: int, scale: float, shift: float) -> None:
    student, teacher = draw(seed, b, d, scale=scale) + shift, draw(seed + 1, b, e)
    loss, reference = (lambda s: losses.rkd_angle(s, teacher)), (lambda s: direct.rkd_angle(s, teacher))
    assert_same(loss, reference, student, rtol=1e-7)


@pytest.mark.parametrize("squared", [False, True])
def test_rkd_counts_duplicates_as_published(squared: bool) -> None:
    """As distances of ``eps`` that have no gradient, and as angles of zero vectors."""
    student, teacher = draw(1, 2, 6, 4)
    student = torch.cat([student, student[:3]])
    teacher = torch.cat([teacher, teacher[:3]])
    for eps in (1e-12, 1e-2):
        assert_same(
            lambda s, eps=eps: losses.rkd_distance(s, teacher, squared, eps),
            lambda s, eps=eps: direct.rkd_distance(s, teacher, squared, eps),
            student,
            rtol=1e-7,
        )
    # The teacher's duplicates are the same, so nothing is asked of the directions that do not exist.
    assert_same(lambda s: losses.rkd_angle(s, teacher), lambda s: direct.rkd_angle(s, teacher), student, rtol=1e-7)


def _sides(seed: int, b: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    anchors, bank = F.normalize(draw(seed, b, d)), F.normalize(draw(seed + 1, n, d))
    index = torch.randint(n, (b, m), generator=torch.Generator().manual_seed(seed))  # with repetitions, as if m > n
    return anchors, bank, index, n * torch.rand((), dtype=torch.float64) + 0.1


@pytest.mark.parametrize(("ratio", "copy"), [(0, 1), (0, 100), (0, 10**9), (10**9, 1)], ids=str)
@given(seed=seeds, b=batches, n=st.integers(2, 40), m=st.integers(2, 60), d=widths, temperature=st.floats(0.05, 1))
def test_contrast(ratio: int, copy: int, seed: int, b: int, n: int, m: int, d: int, temperature: float) -> None:
    """By a product with the whole bank, and by copies of some of its rows, at once and in several parts."""
    anchors, bank, index, z = _sides(seed, b, n, m, d)
    with mock.patch.object(crd, "_DENSE_RATIO", ratio), mock.patch.object(crd, "_COPY_SIZE", copy):
        assert_same(
            lambda a: losses.contrast(a, bank, index, z.log(), temperature),
            lambda a: direct.contrast(a, bank, index, z, temperature),
            anchors,
        )
        log_z = losses.log_normaliser(anchors, bank, index, temperature)
        torch.testing.assert_close(log_z, direct.normaliser(anchors, bank, index, temperature).log())


@given(seeds, batches, st.integers(2, 40), st.integers(2, 60))
def test_counted_rows_have_the_sums_of_scatter_add(seed: int, b: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(n, (b, m), generator=generator)
    weights = torch.rand(b, n, generator=generator).gather(1, index)
    weights[:, 0] -= 1  # also where a negative is the positive's row
    torch.testing.assert_close(crd.sums_by_counting(weights, index, n), crd._sums_by_row(weights, index, n))
    distinct = torch.rand(b, n, generator=generator).argsort(1)[:, :m]
    weights = torch.randn(distinct.shape, generator=generator)
    assert torch.equal(crd.sums_by_counting(weights, distinct, n), crd._sums_by_row(weights, distinct, n))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gradients_of_repeated_rows_are_the_same_every_time_on_a_gpu() -> None:
    anchors, bank, index, z = (tensor.cuda() for tensor in _sides(1, 64, 328, 16385, 128))

    def contrast(a: Tensor) -> Tensor:
        return losses.contrast(a, bank.float(), index, z.log().float(), 0.07)

    first = value_and_gradients(contrast, anchors.float())
    for _ in range(20):
        assert all(map(torch.equal, first, value_and_gradients(contrast, anchors.float())))


@pytest.mark.parametrize("n", [60, 200], ids=["product", "copies"])
def test_contrast_chooses_by_the_size_of_the_bank(n: int) -> None:
    anchors, bank, index, z = _sides(3, 4, n, 9, 5)
    assert crd._is_dense(bank, index) == (n == 60)
    assert_same(
        lambda a: losses.contrast(a, bank, index, z.log(), 0.07),
        lambda a: direct.contrast(a, bank, index, z, 0.07),
        anchors,
    )


@pytest.mark.parametrize("ratio", [0, 10**9], ids=["copies", "product"])
def test_contrast_passes_gradcheck(ratio: int) -> None:
    anchors, bank, index, z = _sides(4, 3, 20, 8, 6)
    with mock.patch.object(crd, "_DENSE_RATIO", ratio):
        assert torch.autograd.gradcheck(
            lambda a: 3 * losses.contrast(a, bank, index, z.log(), 0.5), (anchors.requires_grad_(),)
        )


@given(seeds, batches, st.integers(1, 4), st.integers(1, 5), scales)
def test_partial_l2(seed: int, b: int, c: int, edge: int, scale: float) -> None:
    student, teacher = draw(seed, 2, b, c, edge, edge, scale=scale)
    margin = -draw(seed + 1, c).abs()
    assert_same(
        lambda s, t: losses.partial_l2(s, t, margin), lambda s, t: direct.partial_l2(s, t, margin), student, teacher
    )


@given(seeds, batches, st.integers(1, 4), st.integers(1, 9), scales)
def test_hierarchical_context(seed: int, b: int, c: int, edge: int, scale: float) -> None:
    student, teacher = draw(seed, 2, b, c, edge, edge, scale=scale)
    assert_same(losses.hierarchical_context, direct.hierarchical_context, student, teacher)


def _mean_below_zero(m: float, s: float) -> float:
    """Of a normal variable with mean m and deviation s, by numeric integration."""
    u = np.linspace(-40, -m / s, 400_001) if m / s > -38 else np.linspace(-40, 40, 400_001)
    density = np.exp(-0.5 * u**2)
    return float(np.trapezoid((m + s * u) * density, u) / np.trapezoid(density, u))


@given(st.floats(1e-6, 1e3), st.floats(-1e3, 3.08), st.sampled_from([-1.0, 1.0]))
def test_ofd_margin_is_the_mean_of_what_is_negative(s: float, ratio: float, sign: float) -> None:
    margin = losses.ofd_margin(torch.tensor([sign * s], dtype=torch.float64), torch.tensor([ratio * s]).double())
    m = torch.tensor(ratio * s).double().item()
    assert margin.item() == pytest.approx(_mean_below_zero(m, s), rel=1e-6)


def test_ofd_margin_at_its_threshold() -> None:
    """3.0902 deviations above 0 a thousandth is below."""
    margin = losses.ofd_margin(torch.full((2,), 2.0).double(), 2 * torch.tensor([3.0902, 3.0903]).double())
    assert margin[0].item() == pytest.approx(_mean_below_zero(2 * 3.0902, 2), rel=1e-6)
    assert margin[0].item() > -1
    assert margin[1].item() == -6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "shift", "expected"),
    [
        (0.0, -2.0, -2.0),
        (0.0, 0.0, 0.0),
        (0.0, 2.0, 0.0),
        (1e-30, -2.0, -2.0),
        (1e-30, 2.0, -3e-30),
        (-1.0, 1e4, -3.0),
        (1.0, -1e4, -1e4),
        (1.0, 1e30, -3.0),
        (2.0, 0.0, -2 * math.sqrt(2 / math.pi)),
    ],
)
def test_ofd_margin_at_extremes(scale: float, shift: float, expected: float, dtype: torch.dtype) -> None:
    margin = losses.ofd_margin(torch.tensor([scale], dtype=dtype), torch.tensor([shift], dtype=dtype))
    assert margin.dtype == dtype
    assert margin.item() == pytest.approx(expected, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_gradients_reach_the_sides_they_shall() -> None:
    """RKD teaches the student only, DIST, OFD and HCL both; a bank is no parameter."""
    student, teacher = draw(5, 2, 4, 6)
    for loss in (losses.rkd_distance, losses.rkd_angle):
        _, to_student, to_teacher = value_and_gradients(loss, student, teacher)
        assert to_student.abs().max() > 0
        assert to_teacher.abs().max() == 0
    for term in (0, 1):
        _, to_student, to_teacher = value_and_gradients(
            lambda s, t, i=term: losses.dist_terms(s, t)[i], student, teacher
        )
        assert to_student.abs().max() > 0
        assert to_teacher.abs().max() > 0
    bank = F.normalize(draw(6, 9, 6))
    index = torch.arange(8).view(4, 2)
    _, *both = value_and_gradients(
        lambda a, b: losses.contrast(a, b, index, torch.tensor(1.0).double(), 0.07), F.normalize(student), bank
    )
    assert both[0].abs().max() > 0
    assert both[1].abs().max() == 0
