"""Standardised logits and sample weights, the settings of a row that any method between logits can be combined with."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench import losses
from kd_bench.config.trial import LogitSettings, MethodSettings
from kd_bench.methods import _logit_settings
from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Method, require_teacher
from kd_bench.types import Batch, Outputs
from kd_bench.utils.errors import UserError
from tests.methods.cases import CLASSES, PAIR, batch, outputs, teacher_outputs

INFOS = {name: methods.describe(name) for name in methods.names()}
LOGIT_METHODS = [name for name, info in INFOS.items() if "standardise" in _logit_settings.combinable(info)]
WEIGHTED = [name for name in LOGIT_METHODS if "entropy_weights" in _logit_settings.combinable(INFOS[name])]
FIRST = ("kd", "dkd", "nkd", "rld", "ttm", "wttm", "abkd", "ikl_kd", "dkl_kd", "gkl_kd")

BOTH = LogitSettings(standardise=True, entropy_weights=3.0)


def make(name: str, logit_settings: LogitSettings | None = None, **hyperparameters: Any) -> Method:
    torch.manual_seed(5)
    return methods.build(name, PAIR, hyperparameters, logit_settings)


def standardised(network_outputs: Outputs) -> Outputs:
    return replace(network_outputs, logits=losses.logit_standardise(network_outputs.logits))


def refusal(name: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        methods.split_row(name, values, "r.yaml: methods.x")
    return str(caught.value)


def test_names_are_those_of_the_settings() -> None:
    assert list(LogitSettings.model_fields) == list(_logit_settings.NAMES)
    assert set(FIRST) <= set(WEIGHTED) and "dist" in LOGIT_METHODS
    assert not {"dist", "none", "at", "crd", "ikl_at"} & set(WEIGHTED)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_terms_are_those_of_standardised_logits_and_the_label_loss_that_of_raw_ones(name: str) -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    terms = make(name, LogitSettings(standardise=True))(student, teacher, samples)
    expected = dict(make(name)(standardised(student), standardised(teacher), samples))
    raw = make(name)(student, teacher, samples)
    assert not torch.equal(expected["ce"], raw["ce"])
    assert terms == expected | {"ce": raw["ce"]}


def test_the_gradient_runs_through_the_standardisation() -> None:
    """A loss of standardised logits does not change if all logits are multiplied by a number, and so has no slope."""
    logits = outputs(1).logits.requires_grad_()
    terms = make("kd", LogitSettings(standardise=True))(Outputs(logits), teacher_outputs(2), batch())
    (gradient,) = torch.autograd.grad(terms["kd"], logits)
    assert gradient.norm() > 1e-3
    assert (gradient * logits).sum(-1).abs().max() < 1e-5 * gradient.norm()


def test_both_views_are_standardised() -> None:
    class TwoViews(Method):
        uses_second_view = True

        def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
            second, other = student.second_view, require_teacher(teacher).second_view
            assert second is not None and other is not None
            return {"ce": self.label_loss(second, batch), "kd": losses.kd(second.logits, other.logits, 2.0)}

    method = TwoViews(PAIR)
    _logit_settings.apply(method, LogitSettings(standardise=True))
    student, teacher, samples = outputs(3), teacher_outputs(4), batch()
    terms = method(replace(outputs(1), second_view=student), replace(teacher_outputs(2), second_view=teacher), samples)
    pair = standardised(student).logits, standardised(teacher).logits
    assert terms == {"ce": losses.cross_entropy(student.logits, samples.labels), "kd": losses.kd(*pair, 2.0)}


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_term_but_that_of_the_labels_is_weighted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    plain = make(name)(student, teacher, samples)
    weights = losses.entropy_weights(student.logits, teacher.logits, 3.0)
    calls = []

    def doubled(method: Method, student: Outputs, teacher: Outputs) -> Tensor:
        calls.append((student, teacher))
        return torch.full((len(student.logits),), 2.0)

    terms = make(name, LogitSettings(entropy_weights=3.0))(student, teacher, samples)
    assert torch.equal(terms["ce"], plain["ce"])
    for key in plain.keys() - {"ce"}:
        assert not torch.allclose(terms[key], plain[key], rtol=1e-3)
        assert weights.min() * plain[key] <= terms[key] <= weights.max() * plain[key]
    monkeypatch.setattr(Method, "sample_weights", doubled)
    twice = make(name)(student, teacher, samples)
    assert calls
    for key, value in plain.items():
        torch.testing.assert_close(twice[key], value if key == "ce" else 2 * value)


def test_weights_are_those_of_ea_kd_and_of_the_raw_logits() -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    weights = losses.entropy_weights(student.logits, teacher.logits, 3.0)
    pair = standardised(student).logits, standardised(teacher).logits
    terms = make("kd", BOTH, temperature=2, kd_weight=9)(student, teacher, samples)
    assert terms == {
        "ce": 0.1 * losses.cross_entropy(student.logits, samples.labels),
        "kd": 9 * losses.kd(*pair, 2.0, weights),
    }


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_forward_and_backward_read_no_number_from_the_device(name: str) -> None:
    settings = BOTH if name in WEIGHTED else LogitSettings(standardise=True)
    with FakeTensorMode():
        method, samples = make(name, settings), batch()
        student = torch.randn(32, CLASSES, requires_grad=True)
        terms = method(Outputs(student), Outputs(torch.randn(32, CLASSES)), samples)
        torch.stack(list(terms.values())).sum().backward()
    assert student.grad is not None


def test_losses_are_float32_under_autocast() -> None:
    student, teacher = (
        Outputs(network_outputs.logits.bfloat16()) for network_outputs in (outputs(1), teacher_outputs(2))
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = make("kd", BOTH)(student, teacher, batch())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    full = [Outputs(network_outputs.logits.float()) for network_outputs in (student, teacher)]
    for key, term in make("kd", BOTH)(*full, batch()).items():
        torch.testing.assert_close(terms[key], term)


def test_a_method_can_be_copied_and_has_the_state_of_one_without() -> None:
    method, plain = make("ikl_kd", BOTH, weights="class"), make("ikl_kd", weights="class")
    assert method.state_dict().keys() == plain.state_dict().keys()
    student, teacher, samples = outputs(1), teacher_outputs(2), batch()
    terms = method(student, teacher, samples)
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other(student, teacher, samples) == terms
    assert plain(student, teacher, samples) != terms


def test_a_method_without_settings_has_no_hook() -> None:
    method = make("kd", LogitSettings())
    assert not method._forward_pre_hooks and method.entropy_temperature is None
    assert method.sample_weights(outputs(1), teacher_outputs(2)) is None


@pytest.mark.parametrize("value", ["maybe", 1, None, [True], "true"])
def test_values_of_standardise_that_are_refused(value: Any) -> None:
    expected = f"r.yaml: methods.x: standardise: should be true or false (it is {value!r})"
    assert refusal("kd", standardise=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, "above 0 (it is -1)"),
        (0, "above 0 (it is 0)"),
        (float("nan"), "a finite number (it is nan)"),
        (float("1e400"), "a finite number (it is inf)"),
        (10**400, "a finite number (it is 1000"),
        (1e10, "at most 1,000,000,000 (it is 10000000000.0)"),
        ([3], "a number (it is [3])"),
        ({"a": 1}, "a number (it is {'a': 1})"),
        (True, "a number (it is True)"),
        ("3", "a number (it is '3')"),
    ],
)
def test_values_of_entropy_weights_that_are_refused(value: Any, expected: str) -> None:
    message = refusal("kd", entropy_weights=value)
    assert message.startswith(f"r.yaml: methods.x: entropy_weights: should be {expected}") and len(message) < 200


@pytest.mark.parametrize(
    ("name", "key", "obstacle"),
    [
        ("at", "standardise", "compares features and not logits"),
        ("crd", "entropy_weights", "compares features and not logits"),
        ("none", "standardise", "distils nothing"),
        ("ikl_at", "standardise", "trains on perturbed images without a teacher"),
        ("dist", "entropy_weights", "does not weigh single samples"),
        ("sdd", "standardise", "computes its logits itself"),
    ],
)
def test_methods_that_the_settings_do_not_go_with(name: str, key: str, obstacle: str) -> None:
    message = refusal(name, **{key: True if key == "standardise" else 3})
    assert message.startswith(f"r.yaml: methods.x: {key}: {name} {obstacle}; {key} can be combined with: abkd, ")
    listed = message.rpartition(": ")[2].split(", ")
    assert set(listed) >= set(WEIGHTED if key == "entropy_weights" else LOGIT_METHODS) and name not in listed
    off = {key: False if key == "standardise" else None}
    assert methods.split_row(name, off) == ({}, LogitSettings())


def test_a_misspelt_setting() -> None:
    with pytest.raises(UserError, match="kd has no hyper-parameter 'standardize'; did you mean 'standardise'"):
        methods.check("kd", {"standardize": True})
    with pytest.raises(UserError, match="at has no hyper-parameter 'standardize'; there are: "):
        methods.check("at", {"standardize": True})


PLUGIN = '''"""A plug-in."""
from kd_bench.methods.base import Method

class Mine(Method):
    """The squared distance of the logits."""

    weighs_samples = True

    def __init__(self, pair, *, standardise: bool = False):
        super().__init__(pair)
        self.own = standardise

    def forward(self, student, teacher, batch):
        weights = self.sample_weights(student, teacher)
        distances = (student.logits - teacher.logits).square().mean(-1)
        return {"distance": (distances if weights is None else weights * distances).mean()}
'''


def test_a_hyper_parameter_of_the_same_name_gets_the_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    name = f"{tmp_path / 'mine.py'}:Mine"
    assert methods.describe(name).weighs_samples
    assert _logit_settings.combinable(methods.describe(name)) == ["entropy_weights"]
    values, settings = methods.split_row(name, {"standardise": True, "entropy_weights": 2})
    assert (values, settings) == ({"standardise": True}, LogitSettings(entropy_weights=2.0))
    method = methods.build(name, PAIR, values, settings)
    student, teacher = outputs(1), teacher_outputs(2)
    weights = losses.entropy_weights(student.logits, teacher.logits, 2.0)
    expected = (weights * (student.logits - teacher.logits).square().mean(-1)).mean()
    torch.testing.assert_close(method(student, teacher, batch()), {"distance": expected})
    assert method.own is True and not method._forward_pre_hooks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("weighs_samples = 1", "weighs_samples = 1 should be true or false"),
        ("weighs_samples = bool(1)", "the source of Mine says; write them in the class itself"),
        ("needs_teacher = False", "entropy_weights: {} has no teacher; entropy_weights can be combined with: abkd"),
    ],
)
def test_plug_ins_that_say_something_else(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.replace("weighs_samples = True", line))
    name = f"{tmp_path / 'mine.py'}:Mine"
    with pytest.raises(UserError) as caught:
        methods.build(name, PAIR, *methods.split_row(name, {"entropy_weights": 2} if "teacher" in line else {}))
    assert message.format(name) in str(caught.value)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_methods_that_read_class_maps_compute_logits(name: str) -> None:
    needs = make(name).needs
    assert "class_maps" not in needs.student | needs.teacher


def test_titles() -> None:
    assert MethodSettings(name="kd").title == "kd"
    assert MethodSettings(name="kd", standardise=True).title == "kd + standardise"
    assert MethodSettings(name="dkd", entropy_weights=3.0).title == "dkd + entropy_weights 3"
