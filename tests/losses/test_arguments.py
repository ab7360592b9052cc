"""Arguments of a wrong shape or range are refused in one sentence, without reading a tensor."""

from __future__ import annotations

import doctest
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_bench import losses
from kd_bench.losses import arguments

S, T = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 4])
MAPS, OTHER = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 8, 8)
BANK, INDEX = torch.eye(4), torch.tensor([[0, 1], [1, 2], [2, 3]])
ANCHORS, LOG_Z = torch.eye(4)[:3], torch.tensor(0.0)
UNIFORM = torch.full((5,), 0.2)

POSITIVE = "should be a finite number above 0 (it is "
NON_NEGATIVE = "should be a finite number, at least 0 (it is "

#: A call that fails, and the sentence.
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "ab": (lambda: losses.ab(MAPS[:1], MAPS[:1], -1.0), f"margin {NON_NEGATIVE}-1.0)"),
    "alpha_beta_divergence": (
        lambda: losses.alpha_beta_divergence(S, T, math.nan, 0.5),
        "alpha should be a finite number (it is nan)",
    ),
    "at": (lambda: losses.at(MAPS[0], MAPS), "student should have the shape (B, C, H, W), not (3, 4, 4)"),
    "batch_gram": (lambda: losses.batch_gram(S, T, 0), f"temperature {POSITIVE}0)"),
    "batch_pairwise_mse": (
        lambda: losses.batch_pairwise_mse(S, T, torch.ones(3, 1)),
        "weights should have the shape (B, C) with B = 3 and C = 5, not (3, 1)",
    ),
    "binary_cross_entropy": (
        lambda: losses.binary_cross_entropy(S, S[:, :4]),
        "labels should have the shape (B, C) with B = 3 and C = 5, not (3, 4)",
    ),
    "cat_kd": (lambda: losses.cat_kd(MAPS, MAPS, 0, True), "resolution should be a whole number, at least 1 (it is 0)"),
    "cc": (
        lambda: losses.cc(S, T[:, :4]),
        "teacher should have the shape (B, D) with B = 3 and D = 5, not (3, 4)",
    ),
    "cc_kernel": (
        lambda: losses.cc_kernel(S, T, kernel="gauss"),  # type: ignore[arg-type]
        "kernel should be 'gaussian' or 'bilinear' (it is 'gauss')",
    ),
    "class_gram": (
        lambda: losses.class_gram(S, T, 1.0, torch.ones(3)),
        "class_weights should have the shape (C) with C = 5, not (3)",
    ),
    "class_weights": (lambda: losses.class_weights(T, 0.0), f"tau {POSITIVE}0.0)"),
    "contrast": (
        lambda: losses.contrast(ANCHORS, BANK, INDEX[:, :1], LOG_Z, 0.07),
        "index should have at least 2 columns, one for the positive and one for each negative, not 1",
    ),
    "cross_entropy": (
        lambda: losses.cross_entropy(S, Y.float()),
        "labels should be int64, the classes of the images, not torch.float32",
    ),
    "dist_terms": (lambda: losses.dist_terms(S, T, -1), f"temperature {POSITIVE}-1)"),
    "dkd": (lambda: losses.dkd(S, T, Y, 1.0, -8.0, 4.0), f"beta {NON_NEGATIVE}-8.0)"),
    "dkd_terms": (
        lambda: losses.dkd_terms(S, T, Y[:, None], 4.0),
        "labels should have the shape (B) with B = 3, not (3, 1)",
    ),
    "dkl": (lambda: losses.dkl(S, T, alpha=math.inf), f"alpha {NON_NEGATIVE}inf)"),
    "entropy_weights": (lambda: losses.entropy_weights(S, T, bound=0), f"bound {POSITIVE}0)"),
    "equal_sizes": (
        lambda: losses.equal_sizes(MAPS[:1], OTHER),
        "teacher should have the shape (B, D, h, w) with B = 1, not (2, 4, 8, 8)",
    ),
    "fsp": (
        lambda: losses.fsp((MAPS, MAPS), (OTHER, OTHER)),
        "fsp compares equal channels, not (3, 3) of the student and (4, 4)",
    ),
    "ft": (lambda: losses.ft(MAPS, S), "teacher should have the shape (B, D, h, w) with B = 2, not (3, 5)"),
    "gkl": (lambda: losses.gkl(S, T, UNIFORM, 8.0, -1.0), f"beta {NON_NEGATIVE}-1.0)"),
    "hierarchical_context": (
        lambda: losses.hierarchical_context(MAPS[:1], OTHER[:1]),
        "teacher should have the shape (B, C, H, W) with B = 1 and C = 3 and H = 4 and W = 4, not (1, 4, 8, 8)",
    ),
    "ikl": (lambda: losses.ikl(S, T, UNIFORM, alpha=-3, beta=1), f"alpha {NON_NEGATIVE}-3)"),
    "ikl_adversarial": (
        lambda: losses.ikl_adversarial(S, T, UNIFORM[:4], 20.0, 3.0),
        "weights should have the shape (C) with C = 5, not (4)",
    ),
    "itrd_correlation": (lambda: losses.itrd_correlation(S, T, 0.0), f"alpha {POSITIVE}0.0)"),
    "itrd_mutual": (
        lambda: losses.itrd_mutual(S, T[:2]),
        "teacher should have the shape (B, E) with B = 3, not (2, 5)",
    ),
    "kd": (lambda: losses.kd(S, T, temperature=0), f"temperature {POSITIVE}0)"),
    "kdsvd": (lambda: losses.kdsvd([MAPS], [MAPS]), "kdsvd compares neighbouring maps, at least 2, not 1"),
    "log_normaliser": (
        lambda: losses.log_normaliser(ANCHORS, BANK[:, :3], INDEX, 0.07),
        "bank should have the shape (N, D) with D = 4, not (4, 3)",
    ),
    "logit_standardise": (
        lambda: losses.logit_standardise(S[:, :1]),
        "logits should have at least 2 classes, not 1",
    ),
    "mlkd_terms": (lambda: losses.mlkd_terms(S, T, math.nan), f"temperature {POSITIVE}nan)"),
    "nkd_terms": (
        lambda: losses.nkd_terms(S, T, Y, 1.0, torch.ones(4)),
        "sample_weights should have the shape (B) with B = 3, not (4)",
    ),
    "nst": (lambda: losses.nst(MAPS, S), "teacher should have the shape (B, D, h, w) with B = 2, not (3, 5)"),
    "ofd_margin": (
        lambda: losses.ofd_margin(torch.ones(3), torch.ones(2)),
        "shift should have the shape (C) with C = 3, not (2)",
    ),
    "pairwise_mse": (
        lambda: losses.pairwise_mse(S, T[:1], UNIFORM),
        "teacher_logits should have the shape (B, C) with B = 3 and C = 5, not (1, 5)",
    ),
    "partial_l2": (
        lambda: losses.partial_l2(MAPS, MAPS[:, :, :2], torch.zeros(3)),
        "teacher should have the shape (B, C, H, W) with B = 2 and C = 3 and H = 4 and W = 4, not (2, 3, 2, 4)",
    ),
    "pkt": (lambda: losses.pkt(MAPS, S), "student should have the shape (B, D), not (2, 3, 4, 4)"),
    "pool_regions": (
        lambda: losses.pool_regions(MAPS, (1, 0)),
        "grids should be a whole number, at least 1 (it is 0)",
    ),
    "region_weights": (
        lambda: losses.region_weights(T, Y),
        "teacher_logits should have the shape (B, N, C), not (3, 5)",
    ),
    "reversal_strength": (
        lambda: losses.reversal_strength(0, -1),
        "ramp_epochs should be a whole number, at least 0 (it is -1)",
    ),
    "reverse_gradient": (lambda: losses.reverse_gradient(S, -1.0), f"strength {NON_NEGATIVE}-1.0)"),
    "rkd_angle": (lambda: losses.rkd_angle(S, T[:2]), "teacher should have the shape (B, ...) with B = 3, not (2, 5)"),
    "rkd_distance": (lambda: losses.rkd_distance(S, T, eps=0.0), f"eps {POSITIVE}0.0)"),
    "rld_terms": (lambda: losses.rld_terms(S, T, Y, 4.0, -1.0), f"confidence_temperature {POSITIVE}-1.0)"),
    "soft_cross_entropy": (lambda: losses.soft_cross_entropy(S, T, -0.5), f"temperature {POSITIVE}-0.5)"),
    "sp": (lambda: losses.sp(MAPS, S), "teacher should have the shape (B, ...) with B = 2, not (3, 5)"),
    "trades": (
        lambda: losses.trades(S, T[0]),
        "student_logits should have the shape (B, C), not (5)",
    ),
    "ttm": (lambda: losses.ttm(S, T, 0), f"gamma {POSITIVE}0)"),
    "vid": (
        lambda: losses.vid(MAPS, MAPS, torch.ones(4)),
        "variance should have the shape (C) with C = 3, not (4)",
    ),
    "wttm": (lambda: losses.wttm(S, T, -1), f"gamma {POSITIVE}-1)"),
}  # fmt: skip


def test_every_loss_checks_its_arguments() -> None:
    assert set(CASES) == set(losses.__all__) - {"at_least_float32", "unit_vectors"}, "what takes any tensor is left out"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_argument_is_refused_in_a_sentence(name: str) -> None:
    call, sentence = CASES[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence


def test_every_loss_checks_its_sample_weights() -> None:
    calls: dict[str, Callable[[Tensor], Any]] = {
        "alpha_beta_divergence": lambda w: losses.alpha_beta_divergence(S, T, 0.8, 0.3, 4.0, w),
        "batch_gram": lambda w: losses.batch_gram(S, T, 4.0, w),
        "batch_pairwise_mse": lambda w: losses.batch_pairwise_mse(S, T, UNIFORM, w),
        "dkd": lambda w: losses.dkd(S, T, Y, 1.0, 8.0, 4.0, w),
        "dkd_terms": lambda w: losses.dkd_terms(S, T, Y, 4.0, w),
        "kd": lambda w: losses.kd(S, T, 4.0, w),
        "nkd_terms": lambda w: losses.nkd_terms(S, T, Y, 4.0, w),
        "pairwise_mse": lambda w: losses.pairwise_mse(S, T, UNIFORM, w),
        "rld_terms": lambda w: losses.rld_terms(S, T, Y, 4.0, 1.0, w),
        "soft_cross_entropy": lambda w: losses.soft_cross_entropy(S, T, 4.0, w),
        "ttm": lambda w: losses.ttm(S, T, 0.1, w),
        "wttm": lambda w: losses.wttm(S, T, 0.2, w),
    }
    parameters = {name: inspect.signature(getattr(losses, name)).parameters for name in losses.__all__}
    assert set(calls) == {name for name in parameters if "sample_weights" in parameters[name]}
    for call in calls.values():
        for weights, shape in ((torch.ones(4), "(4)"), (torch.ones(3, 1), "(3, 1)"), (torch.tensor(1.0), "()")):
            with pytest.raises(ValueError) as caught:
                call(weights)
            assert str(caught.value) == f"sample_weights should have the shape (B) with B = 3, not {shape}"


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "4", None])
def test_temperatures_that_are_none(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature should be a finite number above 0"):
        losses.kd(S, T, temperature)


def test_entropies_need_two_classes() -> None:
    """The largest entropy of one class is 0, and the weights divide by it."""
    with pytest.raises(ValueError, match="student_logits should have at least 2 classes, not 1"):
        losses.entropy_weights(S[:, :1], S[:, :1])


@pytest.mark.parametrize("temperature", [4, 4.0, np.float32(4), torch.tensor(4.0)])
def test_temperatures_that_are_numbers(temperature: Any) -> None:
    torch.testing.assert_close(losses.kd(S, T, temperature), losses.kd(S, T, 4.0))


def test_tensors_are_never_read() -> None:
    """On the meta device a read of a value is an error, as it is in a step that a GPU records."""
    temperature = torch.tensor(0.0, device="meta")
    logits, labels = torch.empty(3, 5, device="meta"), torch.empty(3, device="meta", dtype=torch.int64)
    terms: list[Tensor] = [
        losses.kd(logits, logits, temperature),
        losses.cross_entropy(logits, labels),
        *losses.dkd_terms(logits, logits, labels, 4.0),
        losses.ikl(logits, logits, torch.empty(5, device="meta"), temperature, 1.0),  # type: ignore[arg-type]
    ]
    assert all(term.shape == () for term in terms)


def test_examples() -> None:
    result = doctest.testmod(arguments)
    assert result.attempted > 0 and result.failed == 0
