"""The methods that compare feature maps and relations without layers of the size of a stage: their terms and pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method
from kd_bench.methods.cc import CC
from kd_bench.methods.itrd import ITRD
from kd_bench.methods.vid import VID
from kd_bench.types import Pair, Shapes
from kd_bench.utils.errors import UserError
from tests.methods.cases import PAIR, batch, call, make, mapped, outputs, teacher_outputs

TEACHER = PAIR.teacher
assert TEACHER is not None
NAMES = ("at", "sp", "cc", "vid", "pkt", "nst", "kdsvd", "itrd")
STUDENT, TAUGHT = outputs(1), teacher_outputs(2)
STAGES = list(zip(STUDENT.stages[1:], TAUGHT.stages[1:], strict=True))
POOLED = STUDENT.pooled, TAUGHT.pooled


def terms(method: Method, name: str) -> Tensor:
    """The method's own term; the other one is the cross-entropy."""
    all_terms = call(method, STUDENT, TAUGHT, batch())
    torch.testing.assert_close(all_terms["ce"], method.ce_weight * losses.cross_entropy(STUDENT.logits, batch().labels))
    return all_terms[name]


def test_stages_are_paired_from_the_deepest_without_the_stem() -> None:
    assert paired("0abc", "0xyz") == [("a", "x"), ("b", "y"), ("c", "z")]
    assert paired("0abc", "0z") == [("c", "z")]
    assert paired("0c", "0xyz") == [("c", "z")]
    assert paired("0", "0xyz") == []


@pytest.mark.parametrize("name", ["at", "vid", "nst", "kdsvd"])
def test_a_network_without_stages_after_the_stem_is_named(name: str) -> None:
    least = 3 if name == "kdsvd" else 2
    few = replace(PAIR.student, stages=PAIR.student.stages[: least - 1])
    pair = replace(PAIR, student=few, student_name="small_net")
    number = f"{least - 1} stages, the stem included, but {name} needs at least {least}; choose another network"
    with pytest.raises(UserError, match=f"{name}: small_net has {number}"):
        methods.build(name, pair, {})
    short = replace(TEACHER, stages=TEACHER.stages[: least - 1])
    with pytest.raises(UserError, match=f"{name}: big_net has {number}"):
        methods.build(name, replace(PAIR, teacher=short, teacher_name="big_net"), {})
    methods.build(name, replace(PAIR, student=replace(few, stages=PAIR.student.stages[:least])), {})


def test_shapes_are_paired_as_the_maps_are() -> None:
    pair = replace(PAIR, student=replace(PAIR.student, stages=PAIR.student.stages[1:]))
    assert paired_shapes("at", pair) == [((8, 4, 4), (12, 4, 4)), ((10, 2, 2), (16, 2, 2))]


def test_at_and_nst_sum_over_the_stages() -> None:
    expected = torch.stack([losses.at(*maps) for maps in STAGES]).sum()
    torch.testing.assert_close(terms(make("at", attention_weight=7), "attention"), 7 * expected)
    expected = torch.stack([losses.nst(*maps) for maps in STAGES]).sum()
    torch.testing.assert_close(terms(make("nst", selectivity_weight=7), "selectivity"), 7 * expected)


def test_sp_and_pkt_compare_what_is_deepest() -> None:
    assert terms(make("sp", similarity_weight=7), "similarity") == 7 * losses.sp(*STAGES[-1])
    assert terms(make("pkt", transfer_weight=7), "transfer") == 7 * losses.pkt(*POOLED)


@pytest.mark.parametrize("kernel", ["none", "gaussian", "bilinear"])
def test_cc_embeds_both_networks_and_normalises_for_kernels(kernel: str) -> None:
    method = make("cc", correlation_weight=7, kernel=kernel, feature_dim=6, gamma=0.3, order=3)
    assert isinstance(method, CC)
    student_embeddings, teacher_embeddings = method.embed_student(POOLED[0]), method.embed_teacher(POOLED[1])
    assert student_embeddings.shape == teacher_embeddings.shape == (32, 6)
    expected = losses.cc(student_embeddings, teacher_embeddings)
    if kernel != "none":
        expected = losses.cc_kernel(
            F.normalize(student_embeddings),
            F.normalize(teacher_embeddings),
            kernel,  # type: ignore[arg-type]
            0.3,
            3,
        )
    torch.testing.assert_close(terms(method, "correlation"), 7 * expected)


def test_vid_regresses_the_averaged_maps_with_trained_variances() -> None:
    method = make("vid", information_weight=7, initial_variance=2)
    assert isinstance(method, VID)
    expected = torch.zeros(())
    for regressor, (student_maps, teacher_maps) in zip(method.regressors, STAGES, strict=True):
        assert [tuple(layer.weight.shape[:2]) for layer in regressor if isinstance(layer, nn.Conv2d)] == [
            (teacher_maps.shape[1], student_maps.shape[1]),
            (teacher_maps.shape[1], teacher_maps.shape[1]),
            (teacher_maps.shape[1], teacher_maps.shape[1]),
        ]
        expected = expected + losses.vid(
            regressor(student_maps), teacher_maps, torch.full((teacher_maps.shape[1],), 2.0)
        )
    torch.testing.assert_close(terms(method, "information"), 7 * expected)
    terms(method, "information").backward()
    assert all(scale.grad is not None and scale.grad.abs().max() > 0 for scale in method.scales)


def test_vids_fixed_variances_are_no_parameters() -> None:
    trained, fixed = make("vid", initial_variance=2), make("vid", initial_variance=2, variances="fixed")
    assert {name for name in trained.state_dict() if "scales" in name} == {"scales.0", "scales.1", "scales.2"}
    assert trained.state_dict().keys() - fixed.state_dict().keys() == {"scales.0", "scales.1", "scales.2"}
    torch.testing.assert_close(terms(fixed, "information"), terms(trained, "information"))


@pytest.mark.parametrize("variance", [1e-9, 1e-3, 5.0, 1e4])
def test_vids_initial_variance(variance: float) -> None:
    method = make("vid", initial_variance=variance)
    assert isinstance(method, VID)
    for index, stage in enumerate(TAUGHT.stages[1:]):
        variances = method._variance(index, stage)
        torch.testing.assert_close(variances, torch.full((stage.shape[1],), max(variance, 2e-5)))


def test_itrd_embeds_for_the_mutual_term_only_if_the_widths_differ() -> None:
    method = make("itrd", correlation_weight=3, mutual_weight=5, alpha=1.5)
    assert isinstance(method, ITRD)
    all_terms = call(method, STUDENT, TAUGHT, batch())
    embedded = method.embed(POOLED[0])
    torch.testing.assert_close(all_terms["correlation"], 3 * losses.itrd_correlation(embedded, POOLED[1], 1.5))
    torch.testing.assert_close(all_terms["mutual"], 5 * losses.itrd_mutual(embedded, POOLED[1]))

    same = methods.build("itrd", replace(PAIR, student=replace(PAIR.student, pooled=TEACHER.pooled)), {})
    assert isinstance(same, ITRD)
    other = teacher_outputs(3)
    all_terms = call(same, other, TAUGHT, batch())
    torch.testing.assert_close(all_terms["mutual"], losses.itrd_mutual(other.pooled, POOLED[1]))
    torch.testing.assert_close(
        all_terms["correlation"], 2 * losses.itrd_correlation(same.embed(other.pooled), POOLED[1], 1.01)
    )


def test_kdsvd_compares_neighbouring_stages() -> None:
    student_maps, teacher_maps = zip(*STAGES, strict=True)
    assert terms(make("kdsvd", svd_weight=7, vectors=2), "svd") == 7 * losses.kdsvd(student_maps, teacher_maps, 2)


def test_kdsvd_of_channels_needs_equal_ones() -> None:
    pair = replace(PAIR, student_name="small_net", teacher_name="big_net")
    sentence = (
        "kdsvd: matrix = 'channels' compares stages with equal channels, but small_net has a stage of 6x8x8 where "
        "big_net has 8x8x8; choose 'columns'"
    )
    with pytest.raises(UserError, match=sentence):
        methods.build("kdsvd", pair, {"matrix": "channels"})
    method = methods.build("kdsvd", replace(PAIR, student=TEACHER), {"matrix": "channels"})
    other = teacher_outputs(3)
    all_terms = call(method, other, TAUGHT, batch())
    assert all_terms["svd"] == losses.kdsvd(other.stages[1:], TAUGHT.stages[1:], 1, "channels")


@pytest.mark.parametrize("name", ["cc", "itrd"])
def test_what_reads_embeddings_needs_both(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs the pooled embeddings of both networks"):
        methods.build(name, replace(PAIR, teacher=replace(TEACHER, pooled=None)), {})


@pytest.mark.parametrize("name", NAMES)
def test_any_shapes(name: str) -> None:
    """Stages of other sizes and numbers, as a transformer's all alike, on either side; maps of a single pixel."""
    flat = Shapes((5,), stages=((12, 4, 4),) * 6, pooled=(12,))
    pixels = Shapes((5,), stages=((12, 2, 2), (12, 1, 1), (7, 1, 1)), pooled=(12,))
    for student, teacher in ((PAIR.student, flat), (flat, TEACHER), (pixels, TEACHER), (PAIR.student, pixels)):
        method = methods.build(name, Pair(5, 32, student, teacher), {})
        given = mapped(outputs(1, of=student), lambda values: values.requires_grad_())
        all_terms = call(method, given, outputs(2, of=teacher), batch())
        torch.stack(list(all_terms.values())).sum().backward()
        assert all(torch.isfinite(term) for term in all_terms.values())
        reached: list[Any] = [values.grad for values in (*given.stages, given.pooled) if values is not None]
        assert any(gradient is not None for gradient in reached)
        assert all(torch.isfinite(gradient).all() for gradient in reached if gradient is not None)


def test_published_weights_are_the_defaults() -> None:
    weights = {
        "at": ("attention_weight", 1000),
        "sp": ("similarity_weight", 3000),
        "cc": ("correlation_weight", 0.02),
        "vid": ("information_weight", 1),
        "pkt": ("transfer_weight", 30000),
        "nst": ("selectivity_weight", 50),
        "kdsvd": ("svd_weight", 1),
        "itrd": ("correlation_weight", 2),
    }
    assert {name: methods.check(name, {})[key] for name, (key, _) in weights.items()} == {
        name: value for name, (_, value) in weights.items()
    }
    assert {methods.check(name, {})["ce_weight"] for name in weights} == {1}
    assert {methods.describe(name).family for name in weights} == {"features"}
