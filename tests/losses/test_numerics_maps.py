"""Losses of feature maps and relations: few bits, large values, zeros, and sizes of what is computed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_bench import losses
from kd_bench.losses.maps import average_by_products, average_cells
from tests.losses.cases import (
    LargestTensor,
    assert_autocast_changes_nothing,
    assert_double_stays,
    assert_finite,
    assert_half_is_computed_in_single,
    assert_same,
    assert_single_is_close_to_double,
    draw,
    seeds,
    value_and_gradients,
)


def _of_maps(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The 48 numbers of an embedding as a feature map of 3 channels; the teacher's is averaged to it from another."""
    return lambda s, t: loss(s.view(-1, 3, 4, 4), t.view(-1, 12, 2, 2))


def _vid(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.vid(student.view(-1, 3, 4, 4), teacher.view(-1, 3, 4, 4), torch.tensor([0.1, 1.0, 10.0]))


def _fsp(student: Tensor, teacher: Tensor) -> Tensor:
    first, second = ((x[:, :16].view(-1, 1, 4, 4), x[:, 16:].view(-1, 2, 4, 4)) for x in (student, teacher))
    return losses.fsp(first, second)


def _kdsvd(student: Tensor, teacher: Tensor) -> Tensor:
    first, second = ([x.view(-1, 3, 4, 4), x[:, :27].reshape(-1, 3, 3, 3)] for x in (student, teacher))
    return losses.kdsvd(first, second) + losses.kdsvd(first, second, 2, "channels")


def _cat_kd(student: Tensor, teacher: Tensor, normalise: bool) -> Tensor:
    return losses.cat_kd(student.view(-1, 3, 4, 4), teacher.view(-1, 3, 2, 8), 2, normalise)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at": _of_maps(losses.at),
    "ft": _of_maps(losses.ft),
    "nst": _of_maps(losses.nst),
    "nst of few channels": lambda s, t: losses.nst(s.view(-1, 1, 6, 8), t.view(-1, 1, 6, 8)),
    "sp": losses.sp,
    "pkt": losses.pkt,
    "cc": losses.cc,
    "cc gaussian": losses.cc_kernel,
    "cc bilinear, root": lambda s, t: losses.cc_kernel(s, t, "bilinear", squared=False),
    "vid": _vid,
    "itrd correlation": losses.itrd_correlation,
    "itrd mutual": losses.itrd_mutual,
    "kdsvd": _kdsvd,
    "ab": lambda s, t: losses.ab(s.view(-1, 3, 4, 4), t.view(-1, 3, 4, 4)),
    "fsp": _fsp,
    "cat_kd": lambda s, t: _cat_kd(s, t, normalise=False),
    "cat_kd normalised": lambda s, t: _cat_kd(s, t, normalise=True),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
def test_single_precision_is_close_to_double(name: str) -> None:
    assert_single_is_close_to_double(LOSSES[name], *draw(1, 2, 8, 48).float())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_for_values_of_ten_thousand(name: str, dtype: torch.dtype) -> None:
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 48).sign() * 1e4).to(dtype))
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 48) * 1e4).to(dtype))
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 48) * 1e4).relu().to(dtype))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1e-12, 1e-30])
def test_finite_for_tiny_values(name: str, dtype: torch.dtype, scale: float) -> None:
    assert_finite(LOSSES[name], *(draw(2, 2, 8, 48) * scale).to(dtype))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("duplicated", ["some", "all", "all of the student", "zeros", "zeros of the student"])
def test_finite_where_embeddings_coincide(name: str, dtype: torch.dtype, duplicated: str) -> None:
    student, teacher = draw(3, 2, 8, 48)
    if duplicated == "some":
        student[4:], teacher[4:] = student[:4], teacher[:4]
    elif duplicated.startswith("zeros"):
        student = torch.zeros_like(student)
        teacher = torch.zeros_like(teacher) if duplicated == "zeros" else teacher
    else:
        student = student[:1].repeat(8, 1)
        teacher = teacher[:1].repeat(8, 1) if duplicated == "all" else teacher
    assert_finite(LOSSES[name], student.to(dtype), teacher.to(dtype))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_of_one(name: str, dtype: torch.dtype) -> None:
    assert_finite(LOSSES[name], *draw(10, 2, 1, 48).to(dtype))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    assert_half_is_computed_in_single(LOSSES[name], *draw(11, 2, 8, 48).to(dtype))


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    assert_autocast_changes_nothing(LOSSES[name], *draw(12, 2, 8, 48).float())


@every_loss
def test_double_precision_stays(name: str) -> None:
    assert_double_stays(LOSSES[name], *draw(13, 2, 8, 48))


@pytest.mark.parametrize(
    "name", ["at", "ft", "sp", "pkt", "cc", "cc gaussian", "itrd correlation", "itrd mutual", "nst", "ab"]
)
def test_nothing_is_larger_than_the_maps(name: str) -> None:
    """Kernels of all pairs of 256 channels would have 4096 times as many numbers."""
    student, teacher = draw(18, 2, 8, 256, 4, 4).float()
    relations = {"cc gaussian": losses.cc_kernel, "itrd correlation": losses.itrd_correlation} | {
        "itrd mutual": losses.itrd_mutual
    }
    loss = relations.get(name) or getattr(losses, name)
    if name in {"pkt", "cc", *relations}:
        student, teacher = student.flatten(1), teacher.flatten(1)
    with LargestTensor() as largest:
        value_and_gradients(loss, student, teacher)
    assert largest.elements == 8 * 256 * 16


def test_maps_of_other_sizes_are_averaged_by_the_smaller_edges() -> None:
    student, teacher = draw(19, 2, 3, 6, 4), draw(20, 2, 5, 4, 8)
    averaged_student, averaged_teacher = losses.equal_sizes(student, teacher)
    assert torch.equal(averaged_student, F.adaptive_avg_pool2d(student, (4, 4)))
    torch.testing.assert_close(averaged_teacher, F.adaptive_avg_pool2d(teacher, (4, 4)))
    same = losses.equal_sizes(student, student)
    assert same[0] is same[1] is student


@given(seeds, *[st.integers(1, 7)] * 4)
def test_averages_by_products_are_those_of_adaptive_pooling(
    seed: int, height: int, width: int, rows: int, columns: int
) -> None:
    maps = draw(seed, 2, 3, height, width)
    assert_same(
        lambda x: average_by_products(x, (rows, columns)).sin().sum(),
        lambda x: F.adaptive_avg_pool2d(x, (rows, columns)).sin().sum(),
        maps,
    )


def test_averages_on_a_cpu_have_the_bits_of_adaptive_pooling() -> None:
    for number, (edge, cells) in enumerate([(2, 4), (7, 4), (8, 4), (3, 2), (5, 1)]):
        maps = draw(number, 4, 3, edge, edge).float()
        inputs, reference_inputs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        averages, expected = average_cells(inputs, (cells, cells)), F.adaptive_avg_pool2d(reference_inputs, cells)
        assert torch.equal(averages, expected)
        averages.sin().sum().backward()
        expected.sin().sum().backward()
        assert inputs.grad is not None
        assert torch.equal(inputs.grad, reference_inputs.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_averages_by_products_keep_the_type_and_ignore_autocast(dtype: torch.dtype) -> None:
    maps = draw(1, 2, 3, 7, 7).to(dtype)
    expected = average_by_products(maps, (4, 4))
    assert expected.dtype == dtype
    torch.testing.assert_close(expected, F.adaptive_avg_pool2d(maps, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(average_by_products(maps, (4, 4)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("edge", [2, 7])
def test_gradients_of_maps_in_overlapping_cells_are_the_same_every_time_on_a_gpu(edge: int) -> None:
    student, teacher = draw(1, 2, 64, 100, edge, edge).float().cuda()
    first = value_and_gradients(lambda s, t: losses.cat_kd(s, t, 4, True), student, teacher)
    for _ in range(20):
        again = value_and_gradients(lambda s, t: losses.cat_kd(s, t, 4, True), student, teacher)
        assert all(map(torch.equal, first, again))
