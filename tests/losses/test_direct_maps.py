"""The losses of feature maps and relations against their published forms, in float64: values and gradients."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from kd_bench import losses
from tests.losses import direct_maps
from tests.losses.cases import assert_same, batches, draw, scales, seeds, value_and_gradients

channels = st.integers(1, 5)
edges = st.integers(1, 6)
several = st.integers(2, 7)
widths = st.integers(1, 9)


@pytest.mark.parametrize("name", ["at", "ft"])
@given(seed=seeds, b=batches, c=channels, d=channels, edge=edges, other=edges, scale=scales)
def test_attention_maps(name: str, seed: int, b: int, c: int, d: int, edge: int, other: int, scale: float) -> None:
    student, teacher = draw(seed, b, c, edge, edge, scale=scale), draw(seed + 1, b, d, other, other)
    # The gradient is a difference of terms as large as 1 / (norm of the maps): near zero float64 keeps no digit of it.
    assume(min(maps.flatten(1).norm(dim=1).min() for maps in (student, teacher)) > 1e-4)
    assert_same(getattr(losses, name), getattr(direct_maps, name), student, teacher, rtol=1e-7)


@given(seeds, batches, channels, channels, edges, edges, scales)
def test_nst(seed: int, b: int, c: int, d: int, edge: int, other: int, scale: float) -> None:
    """By products of pixels as well as by products of channels: both are the smaller for some of the sizes."""
    student, teacher = draw(seed, b, c, edge, edge, scale=scale), draw(seed + 1, b, d, other, other)
    assert_same(lambda s: losses.nst(s, teacher), lambda s: direct_maps.nst(s, teacher), student, rtol=1e-7)


@pytest.mark.parametrize("edge", [1, 4], ids=["pixels", "channels"])
def test_nst_passes_gradcheck(edge: int) -> None:
    student, teacher = draw(1, 2, 3, edge, edge), draw(2, 2, 2, edge, edge)
    assert torch.autograd.gradcheck(lambda s: 3 * losses.nst(s, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize("normalise", [False, True])
@given(seed=seeds, b=batches, k=channels, edge=edges, other=edges, resolution=st.integers(1, 5), scale=scales)
def test_cat_kd(
    normalise: bool, seed: int, b: int, k: int, edge: int, other: int, resolution: int, scale: float
) -> None:
    student, teacher = draw(seed, b, k, edge, edge + 1, scale=scale), draw(seed + 1, b, k, other + 1, other)
    if normalise:  # near a map of zeros the gradient has no digit that is right
        cells = [F.adaptive_avg_pool2d(maps, resolution).flatten(2) for maps in (student, teacher)]
        assume(min(maps.norm(dim=-1).min() for maps in cells) > 1e-4)
    assert_same(
        lambda s, t: losses.cat_kd(s, t, resolution, normalise),
        lambda s, t: direct_maps.cat_kd(s, t, resolution, normalise),
        student,
        teacher,
        rtol=1e-7,
    )


@given(seeds, st.floats(0.1, 10))
def test_cat_kd_of_normalised_maps_does_not_depend_on_their_scale(seed: int, factor: float) -> None:
    student, teacher = draw(seed, 2, 2, 3, 8, 8)
    expected = losses.cat_kd(student, teacher, 4, True)
    torch.testing.assert_close(losses.cat_kd(factor * student, teacher, 4, True), expected)
    torch.testing.assert_close(losses.cat_kd(student, factor * teacher, 4, True), expected)


@given(seeds, batches, widths, widths, scales)
def test_sp(seed: int, b: int, d: int, e: int, scale: float) -> None:
    assert_same(losses.sp, direct_maps.sp, draw(seed, b, d, scale=scale), draw(seed + 1, b, e), rtol=1e-7)


@given(seeds, several, widths, scales)
def test_cc(seed: int, b: int, d: int, scale: float) -> None:
    assert_same(losses.cc, direct_maps.cc, *draw(seed, 2, b, d, scale=scale))


@given(seeds, batches, widths, widths, st.floats(0.1, 1))
def test_ccs_series_is_that_of_the_gaussian_kernel(seed: int, b: int, d: int, e: int, gamma: float) -> None:
    def series(student: Tensor, teacher: Tensor) -> Tensor:
        return losses.cc_kernel(F.normalize(student), F.normalize(teacher), "gaussian", gamma, order=30)

    def kernel(student: Tensor, teacher: Tensor) -> Tensor:
        return direct_maps.cc_gaussian(F.normalize(student), F.normalize(teacher), gamma)

    assert_same(series, kernel, draw(seed, b, d), draw(seed + 1, b, e))


def test_ccs_norm_is_squared_as_in_the_paper_or_not_as_in_torchdistill() -> None:
    student, teacher = draw(0, 2, 5, 4)
    for kernel in ("gaussian", "bilinear"):
        root = losses.cc_kernel(student, teacher, kernel, squared=False)  # type: ignore[arg-type]
        torch.testing.assert_close(losses.cc_kernel(student, teacher, kernel), (5 * root) ** 2)  # type: ignore[arg-type]


@given(seeds, batches, widths, widths, scales)
def test_pkt(seed: int, b: int, d: int, e: int, scale: float) -> None:
    assert_same(losses.pkt, direct_maps.pkt, draw(seed, b, d, scale=scale), draw(seed + 1, b, e), rtol=1e-7)


@given(seeds, batches, channels, edges, edges, scales)
def test_vid(seed: int, b: int, c: int, edge: int, other: int, scale: float) -> None:
    prediction, teacher = draw(seed, b, c, edge, edge, scale=scale), draw(seed + 1, b, c, other, other)
    assert_same(losses.vid, direct_maps.vid, prediction, teacher, draw(seed + 2, c).exp())


@given(seeds, st.integers(3, 7), widths, st.floats(0.5, 2))
def test_itrd_correlation(seed: int, b: int, d: int, alpha: float) -> None:
    assert_same(
        lambda s, t: losses.itrd_correlation(s, t, alpha),
        lambda s, t: direct_maps.itrd_correlation(s, t, alpha),
        *draw(seed, 2, b, d),
        rtol=1e-7,
    )


@given(seeds, batches, widths, widths, scales)
def test_itrd_mutual(seed: int, b: int, d: int, e: int, scale: float) -> None:
    student, teacher = draw(seed, b, d, scale=scale), draw(seed + 1, b, e)
    assert_same(losses.itrd_mutual, direct_maps.itrd_mutual, student, teacher, rtol=1e-7)


@given(seeds, batches, channels, edges, scales, st.floats(0.1, 3))
def test_ab(seed: int, b: int, c: int, edge: int, scale: float, margin: float) -> None:
    student, teacher = draw(seed, 2, b, c, edge, edge, scale=scale)
    assert_same(lambda s: losses.ab(s, teacher, margin), lambda s: direct_maps.ab(s, teacher, margin), student)


@given(seeds, batches, channels, channels, edges, edges, edges)
def test_fsp(seed: int, b: int, c: int, d: int, edge: int, other: int, third: int) -> None:
    maps = [(c, edge), (d, other), (c, third), (d, edge)]
    assert_same(
        lambda *m: losses.fsp(m[:2], m[2:]),
        lambda *m: direct_maps.fsp(m[:2], m[2:]),
        *[draw(seed + i, b, chs, size, size) for i, (chs, size) in enumerate(maps)],
    )


def test_fsp_of_other_channels() -> None:
    maps = [torch.ones(2, chs, 4, 4) for chs in (3, 5, 3, 6)]
    with pytest.raises(ValueError, match=r"fsp compares equal channels, not \(3, 5\) of the student and \(3, 6\)"):
        losses.fsp((maps[0], maps[1]), (maps[2], maps[3]))


@pytest.mark.parametrize("matrix", ["columns", "channels"])
@given(
    seed=seeds, b=st.integers(1, 3), count=st.integers(1, 3), edges=st.lists(st.integers(4, 6), min_size=6, max_size=6)
)
def test_kdsvd(matrix: Literal["columns", "channels"], seed: int, b: int, count: int, edges: list[int]) -> None:
    """Of wide and of high matrices, unless singular values all but coincide, where our gradient is another."""
    students = [draw(seed + i, b, 4 + i, edges[i], edges[i]) for i in range(3)]
    teachers = [draw(seed + 3 + i, b, 4 + i, edges[3 + i], edges[3 + i]) for i in range(3)]
    for maps in zip(students, teachers, strict=True):
        squares = torch.linalg.svdvals(direct_maps.matrices(*maps, matrix)[0]).square()
        assume(((squares[:, :-1] - squares[:, 1:]) > 1e-4 * squares[:, :1]).all())
    assert_same(
        lambda *s: losses.kdsvd(s, teachers, count, matrix),
        lambda *s: direct_maps.kdsvd(s, teachers, count, matrix),
        *students,
        rtol=1e-6,
    )


def test_kdsvd_of_other_channels() -> None:
    with pytest.raises(ValueError, match="kdsvd compares equal channels, not 3 and 4"):
        losses.kdsvd([torch.ones(2, 3, 4, 4)], [torch.ones(2, 4, 4, 4)], 1, "channels")


def _maps(singular_values: list[float], seed: int = 0) -> Tensor:
    """Two images of one channel with these singular values, as float32."""
    size = len(singular_values)
    left, right = (torch.linalg.qr(draw(seed + i, 2, size, size))[0] for i in range(2))
    return (left * torch.tensor(singular_values, dtype=torch.float64) @ right.mT)[:, None].float()


@pytest.mark.parametrize("matrix", ["columns", "channels"])
@pytest.mark.parametrize(
    "values",
    [[1, 1, 1, 1], [3, 2, 2, 2], [1, 1 - 1e-7, 1 - 1e-6, 1 - 1e-5], [1, 0, 0, 0], [1e4, 1e4, 1e-4, 0], [0, 0, 0, 0]],
    ids=str,
)
def test_kdsvds_gradient_is_finite_and_bounded_if_singular_values_coincide(
    matrix: Literal["columns", "channels"], values: list[float]
) -> None:
    """Where autograd's gradient of the decomposition is not finite, or of the order of 1e6 and more."""
    students, teachers = [_maps(values, i) for i in (0, 2)], [_maps([4, 3, 2, 1], i) for i in (4, 6)]
    if matrix == "channels":  # 4 channels of 4 pixels
        students, teachers = ([maps.view(2, 4, 2, 2) for maps in network] for network in (students, teachers))
    value, *gradients = value_and_gradients(lambda *s: losses.kdsvd(s, teachers, 1, matrix), *students)
    assert torch.isfinite(value)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() * max(values) < 1e5


def test_what_the_bound_of_kdsvds_gradient_is_for() -> None:
    students, teachers = [_maps([1, 1 - 1e-7, 0.5, 0.2], i) for i in (0, 2)], [_maps([4, 3, 2, 1], i) for i in (4, 6)]
    _, *gradients = value_and_gradients(lambda *s: direct_maps.kdsvd(s, teachers, 1, "columns"), *students)
    assert not all(torch.isfinite(gradient).all() and gradient.abs().max() < 1e5 for gradient in gradients)


@pytest.mark.parametrize("matrix", ["columns", "channels"])
def test_kdsvd_passes_gradcheck(matrix: Literal["columns", "channels"]) -> None:
    students = [draw(i, 2, 5, edge, edge).requires_grad_() for i, edge in enumerate((2, 4))]
    teachers = [draw(5 + i, 2, 5, edge, edge) for i, edge in enumerate((3, 4))]
    assert torch.autograd.gradcheck(lambda *s: 3 * losses.kdsvd(s, teachers, 1, matrix), students)


@pytest.mark.parametrize("loss", [losses.at, losses.ft, losses.pkt, losses.itrd_mutual, losses.nst])
def test_no_direction_has_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """An image or channel of zeros, for which published code has a gradient of the order of 1e12, or none at all."""
    student, teacher = draw(0, 2, 6, 3, 2, 2)
    student[2], teacher[4] = 0, 0
    if loss in (losses.pkt, losses.itrd_mutual):
        student, teacher = student.flatten(1), teacher.flatten(1)
    _, gradient, _ = value_and_gradients(loss, student, teacher)
    assert torch.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    assert 0 < gradient.abs().max() < 10


def test_sp_compares_an_image_of_zeros_with_the_others() -> None:
    """Its own row has no direction, but its entries in the other images' rows have a gradient."""
    student, teacher = draw(0, 2, 6, 12)
    student[2] = 0
    _, gradient, _ = value_and_gradients(losses.sp, student, teacher)
    assert 0 < gradient[2].abs().max() < 1
    _, exploding, _ = value_and_gradients(direct_maps.sp, student, teacher)
    assert exploding[2].abs().max() > 1e6


def test_a_constant_coordinate_correlates_with_nothing() -> None:
    student, teacher = draw(0, 2, 6, 4).float()
    constant = student.clone()
    constant[:, 1] = 0.1
    value, gradient, _ = value_and_gradients(losses.itrd_correlation, constant, teacher)
    rest = [0, 2, 3]
    others = losses.itrd_correlation(constant[:, rest], teacher[:, rest])
    torch.testing.assert_close(value, (others.exp2() + 1).log2())
    assert (gradient[:, 1] == 0).all()


def test_gradients_reach_the_sides_they_shall() -> None:
    maps = draw(5, 2, 4, 3, 4, 4)
    both: list[Callable[[Tensor, Tensor], Tensor]] = [losses.at, losses.ft, losses.sp]
    student_only: list[Callable[[Tensor, Tensor], Tensor]] = [losses.nst, losses.ab]
    for loss in both + student_only:
        _, to_student, to_teacher = value_and_gradients(loss, *maps)
        assert to_student.abs().max() > 0
        assert (to_teacher.abs().max() > 0) == (loss in both)
