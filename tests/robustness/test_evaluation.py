"""Attack after attack: order, resumption, few classes, the ball, and a network that is afterwards as it was."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kd_bench.config.attack import STANDARD
from kd_bench.robustness import autoattack
from kd_bench.robustness.adversarial_images import AdversarialImageFiles, check_adversarial_images
from kd_bench.robustness.evaluation import evaluate_robustness
from kd_bench.robustness.evaluation_record import AUTOATTACK, UPPER_BOUND, EvaluationRecord
from kd_bench.utils.errors import RunFailed, UserError
from tests.robustness.parts import EPS, held_out, record, robust, train

COUNT = 40


class Stopped(Exception):
    pass


def run(
    path: Path, attacks: Any, count: int = COUNT, keep: bool = False, classes: int = 10, **settings: Any
) -> EvaluationRecord:
    evaluation = record(path, attacks, count, **settings)
    evaluation.saves_images = keep
    images, labels = held_out(count, classes)
    evaluate_robustness(
        robust(classes), images, labels, classes, evaluation, AdversarialImageFiles(evaluation) if keep else None
    )
    evaluation.save()
    if keep:
        AdversarialImageFiles(evaluation).merge()
        AdversarialImageFiles(evaluation).remove_batches()
    return evaluation


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> EvaluationRecord:
    """All attacks, with their adversarial images."""
    return run(tmp_path_factory.mktemp("whole") / "a.json", ("pgd-20", *STANDARD), keep=True, batch_size=40)


def test_each_attack_leaves_no_more_than_the_weaker_one(whole: EvaluationRecord) -> None:
    clean, pgd, *chain = (whole.accuracy(name) for name in ("clean", "pgd-20", *STANDARD))
    assert all(value is not None for value in (clean, pgd, *chain))
    numbers = [float(value or 0) for value in (clean, pgd, *chain)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 80
    assert 0 < numbers[-1] < numbers[0] - 10  # it is attacked, and the adversarial training shows
    content = json.loads(whole.path.read_text())
    assert (content["status"], content["robust"], content["robust_is"]) == ("done", numbers[-1], AUTOATTACK)
    for earlier, later in itertools.pairwise(STANDARD):
        assert all(a >= b for a, b in zip(whole.flags[earlier], whole.flags[later], strict=True))


def test_adversarial_training_helps_and_none_does_not(whole: EvaluationRecord, tmp_path: Path) -> None:
    images, labels = held_out(COUNT)
    evaluation = record(tmp_path / "a.json", ("apgd-ce",), COUNT)
    evaluate_robustness(train(eps=0), images, labels, 10, evaluation)
    plain, trained = evaluation.accuracy("apgd-ce"), whole.accuracy("square")
    assert plain is not None and trained is not None
    assert (evaluation.accuracy("clean") or 0) > 80
    assert trained > plain + 20


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 1.0)])
def test_kept_images_are_in_the_ball_and_misclassified(norm: str, eps: float, tmp_path: Path) -> None:
    attacks = ("pgd-5", "apgd-ce", "fab-t")
    evaluation = run(tmp_path / "a.json", attacks, 40, keep=True, classes=4, norm=norm, eps=eps, batch_size=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    images, labels = held_out(40, 4)
    state = load_file(AdversarialImageFiles(evaluation).file)
    exact = copy.deepcopy(robust(4)).double()
    every = 0
    for attack in attacks:
        before, after = evaluation.flags_before(attack), evaluation.flags[attack]
        fell = [index for index in range(40) if before[index] == "1" and after[index] == "0"]
        if not fell:
            continue
        every += len(fell)
        places, shown = state[f"{attack}.places"].tolist(), state[f"{attack}.images"]
        assert sorted(places) == fell
        assert (shown.min() >= 0) and (shown.max() <= 1)
        original = (images[places].float() / 255).double().numpy()
        change = (shown.double().numpy() - original).reshape(len(places), -1)
        length = np.abs(change).max(1) if norm == "Linf" else np.sqrt((change**2).sum(1))
        assert length.max() <= eps
        assert (exact(shown.double()).argmax(1) != labels[places]).all()
    assert every > 5
    examined = check_adversarial_images(robust(4), images, labels, evaluation)
    assert all(check.passed for check in examined)
    assert sum(check.images for check in examined) == every


def test_examination_finds_what_is_wrong(whole: EvaluationRecord, tmp_path: Path) -> None:
    images, labels = held_out(COUNT)
    assert all(check.passed for check in check_adversarial_images(robust(), images, labels, whole))
    # another network, which the images do not mislead
    untouched = train(seed=1)
    assert not all(check.passed for check in check_adversarial_images(untouched, images, labels, whole))
    file = AdversarialImageFiles(whole).file
    content = file.read_bytes()
    try:
        about, state = json_header(content), load_file(file)
        state["apgd-ce.images"] = (state["apgd-ce.images"] + 0.01).clamp(0, 1)
        rewrite(file, state, about)
        checks = {check.attack: check for check in check_adversarial_images(robust(), images, labels, whole)}
        assert checks["apgd-ce"].outside == checks["apgd-ce"].images > 0
        assert checks["apgd-ce"].max_distance > EPS
        assert not checks["apgd-ce"].passed
        state = load_file(file)
        for key in ("places", "images"):
            state[f"pgd-20.{key}"] = state[f"pgd-20.{key}"][1:]
        rewrite(file, state, about)
        checks = {check.attack: check for check in check_adversarial_images(robust(), images, labels, whole)}
        assert (checks["pgd-20"].missing, checks["pgd-20"].passed) == (1, False)
        state["pgd-20.places"] = state["pgd-20.places"] + COUNT
        rewrite(file, state, about)
        with pytest.raises(UserError, match="is damaged: pgd-20's images do not fit"):
            check_adversarial_images(robust(), images, labels, whole)
        file.write_bytes(content[:100])
        with pytest.raises(UserError, match=r"another evaluation|cannot be read"):
            check_adversarial_images(robust(), images, labels, whole)
        file.unlink()
        with pytest.raises(UserError, match="--save-examples"):
            check_adversarial_images(robust(), images, labels, whole)
    finally:
        file.write_bytes(content)


def json_header(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["kd_bench"])
    return header


def rewrite(file: Path, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    from kd_bench.models import weights

    weights.write(file, state, about)


def test_network_and_global_generator_are_left_as_they_were(tmp_path: Path) -> None:
    net = copy.deepcopy(robust(4))
    net.train()
    net[4].eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    net[0].weight.requires_grad_(False)
    seen = set()
    net[1].register_forward_hook(lambda module, *_: seen.add(any(layer.training for layer in net.modules())))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    images, labels = held_out(10, 4)
    evaluation = record(tmp_path / "a.json", ("pgd-2", "apgd-ce", "fab-t"), 10)
    evaluate_robustness(net, images, labels, 4, evaluation)
    assert seen == {False}
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not logging.getLogger("auto-attack").handlers
    assert logging.getLogger("auto-attack").propagate


def test_interrupted_after_every_batch_it_gives_the_same_flags_and_repeats_nothing(tmp_path: Path) -> None:
    attacks, count = ("pgd-5", "apgd-ce", "apgd-t"), 36
    images, labels = held_out(count, 4)
    undisturbed = run(tmp_path / "whole.json", attacks, count, keep=True, classes=4, batch_size=16)
    done: list[tuple[str, int]] = []

    def stop(name: str, number: int, of: int, standing: int) -> None:
        done.append((name, number))
        raise Stopped

    path = tmp_path / "parts.json"
    for _ in range(100):
        torch.manual_seed(len(done))  # what the global generator holds must not matter
        evaluation = record(path, attacks, count, batch_size=16)
        assert evaluation.resume() == bool(done)
        evaluation.saves_images = True
        try:
            evaluate_robustness(robust(4), images, labels, 4, evaluation, AdversarialImageFiles(evaluation), stop)
        except Stopped:
            continue
        break
    assert evaluation.done
    assert len(done) == len(set(done)) >= 9
    assert evaluation.flags == undisturbed.flags
    evaluation.save()
    AdversarialImageFiles(evaluation).merge()
    same, other = load_file(AdversarialImageFiles(evaluation).file), load_file(AdversarialImageFiles(undisturbed).file)
    assert same.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in same.items())


def test_seed_changes_the_draws_and_nothing_else_does(tmp_path: Path) -> None:
    def images(name: str, **settings: Any) -> torch.Tensor:
        evaluation = run(tmp_path / name, ("apgd-ce",), 30, keep=True, **settings)
        return load_file(AdversarialImageFiles(evaluation).file)["apgd-ce.images"]

    first = images("a.json", seed=1)
    assert torch.equal(first, images("b.json", seed=1))
    other = images("c.json", seed=2)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_another_evaluation_is_not_resumed(whole: EvaluationRecord, tmp_path: Path) -> None:
    for attacks, settings in ((("apgd-ce",), {}), (("pgd-20", *STANDARD), {"seed": 1})):
        evaluation = record(tmp_path / "a.json", attacks, COUNT, batch_size=40, **settings)
        evaluation.path.write_bytes(whole.path.read_bytes())
        assert not evaluation.resume()
    evaluation = record(tmp_path / "a.json", ("pgd-20", *STANDARD), COUNT, batch_size=40)
    assert evaluation.resume()
    evaluation.subject["weights"] = "1"
    assert not evaluation.resume()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "attack"', '{"kind": "other"}'])
def test_damaged_file_is_an_error(content: str, tmp_path: Path) -> None:
    evaluation = record(tmp_path / "a.json", ("apgd-ce",), 5)
    evaluation.path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json: is damaged; remove it"):
        evaluation.resume()


@pytest.mark.parametrize("fault", ["flags", "letters", "missing"])
def test_damaged_flags_are_an_error(whole: EvaluationRecord, fault: str, tmp_path: Path) -> None:
    content = json.loads(whole.path.read_text())
    if fault == "missing":
        del content["flags"]
    else:
        content["flags"]["clean"] = "1" if fault == "flags" else "x" * COUNT
    evaluation = record(tmp_path / "a.json", ("pgd-20", *STANDARD), COUNT, batch_size=40)
    evaluation.path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        evaluation.resume()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_fewer_than_ten_classes(classes: int, tmp_path: Path) -> None:
    attacks = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t")
    evaluation = run(tmp_path / "a.json", attacks, 8, classes=classes)
    lost = {2: ["apgd-dlr", "apgd-t"], 3: ["apgd-t"]}.get(classes, [])
    assert evaluation.skipped == lost
    assert evaluation.attacks == tuple(name for name in attacks if name not in lost)
    assert all(evaluation.accuracy(name) is not None for name in evaluation.attacks)
    assert not evaluation.complete


def test_all_of_autoattack_but_too_few_classes_is_an_upper_bound(tmp_path: Path) -> None:
    evaluation = record(tmp_path / "a.json", STANDARD, 4, eps=0.9)  # so that nothing is left for the slow attacks
    images, labels = held_out(4, 3)
    evaluate_robustness(robust(3), images, labels, 3, evaluation)
    evaluation.save()
    assert json.loads(evaluation.path.read_text())["robust_is"] == UPPER_BOUND
    with pytest.raises(UserError, match="APGD-T needs 4 classes, and the data set has 3"):
        evaluate_robustness(robust(3), images, labels, 3, record(tmp_path / "b.json", ("apgd-t",), 4))


def test_targets_are_one_less_than_the_classes() -> None:
    for classes, targets in ((2, 1), (4, 3), (10, 9), (100, 9)):
        attack = autoattack.AutoAttack(nn.Identity(), EPS, "Linf", classes, torch.device("cpu"))
        assert attack._standard.apgd_targeted.n_target_classes == attack._standard.fab.n_target_classes == targets


def test_settings_are_those_of_the_standard_version() -> None:
    every = autoattack.AutoAttack(nn.Identity(), EPS, "Linf", 10, torch.device("cpu"))._standard
    assert (every.apgd.n_iter, every.apgd.n_restarts, every.apgd_targeted.n_restarts) == (100, 1, 1)
    assert (every.fab.n_iter, every.fab.n_restarts, every.square.n_queries) == (100, 1, 5000)
    assert tuple(every.attacks_to_run) == STANDARD


@pytest.mark.parametrize("attacks", [("pgd-3",), ("apgd-ce",), ("apgd-ce", "apgd-t")])
def test_what_is_not_all_of_autoattack_is_an_upper_bound(attacks: tuple[str, ...], tmp_path: Path) -> None:
    evaluation = run(tmp_path / "a.json", attacks, 10)
    content = json.loads(evaluation.path.read_text())
    assert content["robust_is"] == UPPER_BOUND
    assert content["robust"] == evaluation.accuracy(attacks[-1])


class Randomised(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return robust()(x) + torch.randn(len(x), 10)


def test_unreliable_networks_are_reported() -> None:
    images, network = held_out(8)[0].float() / 255, robust()
    assert autoattack.find_unreliable(network, images) == []
    assert "randomised" in autoattack.find_unreliable(Randomised(), images)[0]
    assert "probabilities" in autoattack.find_unreliable(nn.Sequential(network, nn.Softmax(1)), images)[0]


class Flat(nn.Module):
    """Rounds its images first, so that there is no gradient to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.network = robust()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((x * 4).round() / 4 + 0 * x)
        return logits


def test_zero_gradients_are_reported(tmp_path: Path) -> None:
    images, labels = held_out(6)
    evaluation = record(tmp_path / "a.json", ("apgd-t",), 6, eps=0.01)
    evaluate_robustness(Flat(), images, labels, 10, evaluation)
    assert evaluation.warnings == [
        "some images have a gradient of zero, which blinds the attacks that follow gradients"
    ]


def test_logits_that_are_not_finite_are_told(tmp_path: Path) -> None:
    net = copy.deepcopy(robust())
    net[-1].weight.data.fill_(float("nan"))
    images, labels = held_out(6)
    with pytest.raises(RunFailed, match="logits are not finite"):
        evaluate_robustness(net, images, labels, 10, record(tmp_path / "a.json", ("pgd-2",), 6))


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kd-bench\[robust\]'"):
        autoattack.autoattack_version()


class Constant(nn.Module):
    """Always has the same answer, as a network whose images have another normalisation than in training."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(10.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


def test_clean_accuracy_of_guessing_is_reported_once(tmp_path: Path) -> None:
    images, labels = held_out(COUNT)
    evaluation = record(tmp_path / "a.json", ("pgd-1",), COUNT)
    for _ in range(2):  # the second continues
        evaluate_robustness(Constant(), images, labels, 10, evaluation)
    assert [line for line in evaluation.warnings if "could be that of guessing" in line] == evaluation.warnings
    assert len(evaluation.warnings) == 1
    assert run(tmp_path / "b.json", ("pgd-1",)).warnings == []
