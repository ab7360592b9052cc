"""The terms of TTM, WTTM, NKD, RLD, GKL-KD and ABKD, and the class weights of GKL-KD."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.types import Outputs
from tests.methods.cases import CLASSES, batch, make, outputs, teacher_outputs

NAMES = ["ttm", "wttm", "nkd", "rld", "gkl_kd", "gkl_kd sample", "abkd"]


def test_ttm_terms() -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    assert make("ttm", gamma=0.3, beta=5, ce_weight=0.5)(student, teacher, samples) == {
        "ce": 0.5 * losses.cross_entropy(student.logits, samples.labels),
        "ttm": 5 * losses.ttm(student.logits, teacher.logits, 0.3),
    }
    assert make("wttm", gamma=0.3, beta=5, ce_weight=0.5)(student, teacher, samples) == {
        "ce": 0.5 * losses.cross_entropy(student.logits, samples.labels),
        "wttm": 5 * losses.wttm(student.logits, teacher.logits, 0.3),
    }


def test_nkd_terms() -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    target, others = losses.nkd_terms(student.logits, teacher.logits, samples.labels, 2.0)
    assert make("nkd", gamma=1.5, temperature=2)(student, teacher, samples) == {
        "ce": losses.cross_entropy(student.logits, samples.labels),
        "target": target,
        "others": 1.5 * others,
    }


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_rld_terms_warm_up_and_the_cross_entropy_does_not(epoch: int, factor: float) -> None:
    method = make("rld", warmup_epochs=4, alpha=3, confidence_temperature=2, temperature=5)
    student, teacher, samples = outputs(1), teacher_outputs(2), batch(epoch=epoch)
    scd, mcd = losses.rld_terms(student.logits, teacher.logits, samples.labels, 5.0, 2.0)
    terms = method(student, teacher, samples)
    assert terms["ce"] == losses.cross_entropy(student.logits, samples.labels)
    torch.testing.assert_close(terms["scd"], factor * 3.0 * scd)
    torch.testing.assert_close(terms["mcd"], factor * 8.0 * mcd)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_gkl_terms_warm_up_and_the_cross_entropy_does_not(epoch: int, factor: float) -> None:
    method = make("gkl_kd sample", warmup_epochs=4, alpha=12, beta=3, gamma=0.3, tau=2)
    student, teacher, samples = outputs(1), teacher_outputs(2), batch(epoch=epoch)
    weights = (teacher.logits / 2).softmax(-1) ** 0.3
    terms = method(student, teacher, samples)
    assert terms["ce"] == losses.cross_entropy(student.logits, samples.labels)
    expected = factor * losses.gkl(student.logits, teacher.logits, weights, 12.0, 3.0, 4.0)
    torch.testing.assert_close(terms["pairwise"] + terms["soft_ce"], expected)
    torch.testing.assert_close(
        terms["soft_ce"], factor * 3.0 * losses.soft_cross_entropy(student.logits, teacher.logits, 4.0)
    )


def test_the_class_weights_of_gkl_are_powers_of_the_means_of_the_epoch_before() -> None:
    method = make("gkl_kd class", warmup_epochs=0, alpha=1, gamma=0.5, tau=2)
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    uniform = 0.5 * (teacher.logits - student.logits).var(-1, correction=0).mean()
    torch.testing.assert_close(method(student, teacher, samples)["pairwise"], uniform)
    method.on_epoch_end()
    probabilities = (teacher.logits / 2).softmax(-1)
    prior = torch.stack([probabilities[samples.labels == y].mean(0) for y in range(CLASSES)])
    later, other = batch(seed=3), teacher_outputs(4)
    expected = losses.batch_pairwise_mse(student.logits, other.logits, prior[later.labels].sqrt())
    torch.testing.assert_close(method(student, other, later)["pairwise"], expected)


def test_gkl_with_power_one_is_ikl_up_to_the_normalisation() -> None:
    """Weights of an image that sum to one have the squared sum one."""
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    settings = {"alpha": 8, "beta": 1, "tau": 4, "warmup_epochs": 0}
    terms = make("gkl_kd sample", gamma=1, **settings)(student, teacher, samples)
    expected = make("ikl_kd sample", **settings)(student, teacher, samples)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value)


def test_abkd_terms_and_kl_as_one_of_its_cases() -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    divergence = losses.alpha_beta_divergence(student.logits, teacher.logits, 0.8, 0.3, 2.0)
    assert make("abkd", temperature=2)(student, teacher, samples) == {
        "ce": losses.cross_entropy(student.logits, samples.labels),
        "ab": 32.0 * divergence,
    }
    terms = make("abkd", alpha=1, beta=0, ab_weight=0.9 * 16)(student, teacher, samples)
    torch.testing.assert_close(terms["ab"], make("kd")(student, teacher, samples)["kd"])


def test_settings_of_the_published_runs_are_the_defaults() -> None:
    assert methods.check("ttm", {}) == {"gamma": 0.1, "beta": 45.0, "ce_weight": 1.0}
    assert methods.check("wttm", {}) == {"gamma": 0.2, "beta": 4.0, "ce_weight": 1.0}
    assert methods.check("nkd", {}) == {"gamma": 3.5, "temperature": 3.0, "ce_weight": 1.0}
    assert methods.check("rld", {}) == {
        "alpha": 1.0,
        "beta": 8.0,
        "confidence_temperature": 1.0,
        "temperature": 4.0,
        "warmup_epochs": 20,
        "ce_weight": 1.0,
    }
    assert methods.check("gkl_kd", {}) == {
        "alpha": 8.0,
        "beta": 1.0,
        "gamma": 0.05,
        "temperature": 4.0,
        "warmup_epochs": 20,
        "ce_weight": 1.0,
        "weights": "class",
        "tau": 4.0,
    }
    assert methods.check("abkd", {}) == {
        "alpha": 0.8,
        "beta": 0.3,
        "ab_weight": 32.0,
        "temperature": 4.0,
        "ce_weight": 1.0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_read_no_number_from_the_device(name: str) -> None:
    """Fake tensors have no values, so an operation whose shape or branch depends on one raises an error."""
    with FakeTensorMode():
        method, samples = make(name), batch()
        student = torch.randn(32, CLASSES, requires_grad=True)
        terms = method(Outputs(student), Outputs(torch.randn(32, CLASSES)), samples)
        torch.stack(list(terms.values())).sum().backward()
    assert student.grad is not None
