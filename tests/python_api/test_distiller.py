"""A method in one's own training loop: any networks, all methods, and what is said of what does not fit."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kd_bench
from kd_bench import Method, UserError, distiller, losses
from kd_bench.methods import _registry as methods
from kd_bench.models import registry as models
from kd_bench.models.outputs import observe
from kd_bench.python_api import distiller as distiller_module
from kd_bench.types import Batch, Outputs, Pair

CLASSES = 7
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
ALL_LABELS = torch.arange(60) % CLASSES

#: Methods that train a network on perturbed images.
ADVERSARIAL = [name for name in methods.names() if methods.describe(name).family == "adversarial"]


def network(name: str = "cifar_resnet8", seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return models.create(name, CLASSES)


def plain(seed: int = 1, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))


def refusal(method: Any = "kd", **changes: Any) -> str:
    arguments: dict[str, Any] = {"student": plain(1), "teacher": plain(2), "images": IMAGES, **changes}
    with pytest.raises(UserError) as caught:
        distiller(method, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in ADVERSARIAL])
def test_every_method_trains_a_student_for_three_steps(name: str) -> None:
    student, teacher = network(), network("cifar_resnet14", 2)
    before = copy.deepcopy(teacher.state_dict())
    train_labels = ALL_LABELS if name == "crd" else None
    hyperparameters = {"negatives": 20} if name == "crd" else {}
    module = distiller(
        name, student=student, teacher=teacher, images=IMAGES, train_labels=train_labels, **hyperparameters
    )
    assert set(module.parameters()) == {*student.parameters(), *module.method.parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for epoch in range(3):
        terms = module(IMAGES, LABELS, LABELS if name == "crd" else None, epoch=epoch)
        loss = torch.stack(list(terms.values())).sum()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    untrained = {key for key, weight in student.named_parameters() if weight.grad is None}
    assert untrained == ({"fc.weight", "fc.bias"} if methods.describe(name).keeps_layers else set())
    assert all(weight.grad is None for weight in teacher.parameters())
    after = teacher.state_dict()
    assert module.teacher is None or not teacher.training
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(("name", "term"), [("ab", "boundary"), ("fsp", "flow"), ("ft", "reconstruction")])
def test_a_preparation_comes_before_epoch_0(name: str, term: str) -> None:
    student, teacher = network(), network("cifar_resnet14", 2)
    module = distiller(name, student=student, teacher=teacher, images=IMAGES, preparation_epochs=2)
    losses_before = []
    for epoch in (-2, -1):
        assert module.epoch == epoch
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        terms = module(IMAGES, LABELS)
        assert set(terms) == {term}
        terms[term].backward()
        optimizer.step()
        losses_before.append(terms[term].item())
        module.end_epoch()
    assert losses_before[1] < losses_before[0]
    assert module.epoch == 0
    assert set(module(IMAGES, LABELS)) == ({"ce", "factor"} if name == "ft" else {"ce"})
    assert set(module(IMAGES, LABELS, epoch=-1)) == {term}
    without = distiller(name, student=network(), teacher=teacher, images=IMAGES, preparation_epochs=0)
    assert without.epoch == 0 and "ce" in without(IMAGES, LABELS)


def test_terms_are_those_of_the_method() -> None:
    student, teacher = network(), network("cifar_resnet14", 2)
    module = distiller("ofd", student=student, teacher=teacher, images=IMAGES, teacher_batch_norm="running").eval()
    needs = module.method.needs
    taught = observe(teacher, IMAGES, needs.teacher)
    batch = Batch(IMAGES, LABELS, torch.full((6,), -1), 0, 0)
    expected = module.method(observe(student, IMAGES, needs.student), taught, batch)
    assert {name: term.item() for name, term in module(IMAGES, LABELS).items()} == {
        name: term.item() for name, term in expected.items()
    }


def test_any_module_that_returns_logits() -> None:
    student, teacher = plain(1), plain(2)
    terms = distiller("kd", student=student, teacher=teacher, images=IMAGES, temperature=2.0)(IMAGES, LABELS)
    expected = losses.kd(student(IMAGES), teacher(IMAGES), 2.0)
    torch.testing.assert_close(terms["kd"], 0.9 * expected)
    torch.testing.assert_close(terms["ce"], 0.1 * losses.cross_entropy(student(IMAGES), LABELS))


def test_vectors_instead_of_images() -> None:
    student, teacher, rows = nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(4, 5)
    terms = distiller("dist", student=student, teacher=teacher, images=rows)(rows, torch.tensor([0, 1, 2, 0]))
    assert set(terms) == {"ce", "inter", "intra"}


class Squares(kd_bench.Method):
    """A method of a notebook's cell."""

    def __init__(self, pair: kd_bench.Pair, *, weight: float = 2.0) -> None:
        super().__init__(pair)
        self.weight = weight
        self.epochs = 0

    def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "squares"."""
        return {"squares": self.weight * (student.logits - teacher.logits).square().mean()}

    def on_epoch_end(self) -> None:
        """Counts."""
        self.epochs += 1


def test_a_class_of_ones_own() -> None:
    student, teacher = plain(1), plain(2)
    module = distiller(Squares, student=student, teacher=teacher, images=IMAGES, weight=3.0)
    expected = 3 * (student(IMAGES) - teacher(IMAGES)).square().mean()
    torch.testing.assert_close(module(IMAGES, LABELS)["squares"], expected)
    assert refusal(Squares, wieght=1) == "Squares: no hyper-parameter is called 'wieght'; did you mean 'weight'?"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kd_bench import Method\n\n\nclass Mine(Method):\n    def forward(self, student, teacher, batch):\n"
        "        return {'distance': (student.logits - teacher.logits).abs().mean()}\n"
    )
    student, teacher = plain(1), plain(2)
    module = distiller(f"{tmp_path}/mine.py:Mine", student=student, teacher=teacher, images=IMAGES)
    torch.testing.assert_close(module(IMAGES, LABELS)["distance"], (student(IMAGES) - teacher(IMAGES)).abs().mean())


def test_epochs_are_counted_or_given() -> None:
    student, teacher = plain(1), plain(2)
    module = distiller("dkd", student=student, teacher=teacher, images=IMAGES, warmup_epochs=4, beta=0.0)
    full = losses.dkd_terms(student(IMAGES), teacher(IMAGES), LABELS, 4.0)[0].detach()

    def share(**epoch: int) -> float:
        return round(float(module(IMAGES, LABELS, **epoch)["tckd"].detach() / full), 3)

    assert share() == share() == 0.25
    module.end_epoch()
    assert (module.epoch, share()) == (1, 0.5)
    assert (share(epoch=2), module.epoch) == (0.75, 2)
    module.end_epoch()
    assert (share(epoch=3), share(), share(epoch=9)) == (1.0, 1.0, 1.0)


def test_a_method_is_told_of_the_end_of_each_epoch_once() -> None:
    module = distiller(Squares, student=plain(1), teacher=plain(2), images=IMAGES)
    for epoch in (0, 0, 1, 1, 2):
        module(IMAGES, LABELS, epoch=epoch)
    assert module.method.epochs == 2
    module.end_epoch()
    module(IMAGES, LABELS, epoch=3)
    assert module.method.epochs == 3
    module.eval()(IMAGES, LABELS, epoch=7)
    assert (module.method.epochs, module.epoch) == (3, 3)


def _crd(seed: int = 1) -> distiller_module.Distiller:
    student, teacher = network(seed=seed), network("cifar_resnet14", 2)
    torch.manual_seed(seed)
    return distiller("crd", student=student, teacher=teacher, images=IMAGES, train_labels=ALL_LABELS, negatives=20)


def test_steps_end_before_the_next_one_and_before_a_checkpoint() -> None:
    module = _crd()
    before = module.method.student_bank.clone()
    module(IMAGES, LABELS, LABELS)
    assert torch.equal(module.method.student_bank, before)
    state = module.state_dict()
    assert (state["method.student_bank"] != before).any(1).nonzero().flatten().tolist() == LABELS.tolist()
    module(IMAGES, LABELS, LABELS + 10)
    module(IMAGES, LABELS, LABELS + 20)
    changed = (module.method.student_bank != before).any(1).nonzero().flatten().tolist()
    assert changed == [*LABELS.tolist(), *(LABELS + 10).tolist()]


def test_the_parts_of_a_step_are_one_step() -> None:
    module = _crd()
    before = module.method.student_bank.clone()
    for index in (LABELS[:3], LABELS[3:]):
        module(IMAGES[:3], LABELS[:3], index, step=0)
    assert torch.equal(module.method.student_bank, before)
    module(IMAGES, LABELS, LABELS + 10, step=1)
    assert (module.method.student_bank != before).any(1).nonzero().flatten().tolist() == LABELS.tolist()


def test_a_checkpoint_resumes_without_the_teacher() -> None:
    module = _crd()
    module(IMAGES, LABELS, LABELS)
    module.end_epoch()
    module(IMAGES, LABELS, LABELS + 10)
    state = copy.deepcopy(module.state_dict())
    assert not any(key.startswith("teacher") for key in state)
    assert len(state) == len(module.student.state_dict()) + len(module.method.state_dict()) + 1
    again = _crd(seed=5)
    again.load_state_dict(state)
    assert again.epoch == 1
    terms = []
    for instance in (module, again):
        torch.manual_seed(0)
        terms.append({name: term.item() for name, term in instance(IMAGES, LABELS, LABELS + 20).items()})
    assert terms[0] == terms[1]


def test_the_teacher_moves_with_the_module_and_stays_in_evaluation_mode() -> None:
    teacher = network("cifar_resnet14", 2).train()
    module = distiller("kd", student=network(), teacher=teacher, images=IMAGES).double()
    assert module.teacher is teacher and next(teacher.parameters()).dtype == torch.float64
    teacher.train()
    module(IMAGES.double(), LABELS)
    assert not teacher.training


def test_a_copy_has_a_teacher_of_its_own() -> None:
    module = distiller(Squares, student=plain(1), teacher=plain(2), images=IMAGES)
    again = copy.deepcopy(module)
    assert again.teacher is not module.teacher
    torch.testing.assert_close(again(IMAGES, LABELS), module(IMAGES, LABELS))


def test_mixed_labels() -> None:
    shares = torch.eye(CLASSES)[LABELS] * 0.8 + torch.eye(CLASSES)[LABELS.flip(0)] * 0.2
    module = distiller("ikl_kd", student=plain(1), teacher=plain(2), images=IMAGES)
    torch.testing.assert_close(module(IMAGES, shares)["ce"], losses.cross_entropy(module.student(IMAGES), shares))


def test_a_method_without_a_teacher_ignores_one() -> None:
    module = distiller("none", student=plain(1), teacher=plain(2), images=IMAGES)
    assert module.teacher is None and set(module(IMAGES, LABELS)) == {"ce"}


class NoSuper(Method):
    def __init__(self, pair: Pair) -> None:
        self.epochs = 1

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {}


class NoForward(Method):
    pass


class Bare(Method):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Any:
        return self.label_loss(student, batch)


class Stages(Method):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": student.stages[0].mean()}


def test_an_output_that_was_not_requested_is_named() -> None:
    module = distiller(Stages, student=plain(), teacher=plain(2), images=IMAGES)
    with pytest.raises(IndexError) as caught:
        module(IMAGES, LABELS)
    assert caught.value.__notes__ == [
        "student.stages was not requested; add needs = Needs(student=frozenset({'stages'})) to the class"
    ]


def test_a_loss_without_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"line \d+: Bare.forward returns a tensor; it should return the loss by term"):
        distiller(Bare, student=plain(), teacher=plain(2), images=IMAGES)(IMAGES, LABELS)


def test_refusals() -> None:
    no_stages = "has no output 'stages': it has no forward_intermediates, a function of timm's networks"
    assert refusal("at") == f"at: student: model Sequential: {no_stages}"
    assert refusal("at", student=network()) == f"at: teacher: model Sequential: {no_stages}"
    net = plain()
    assert refusal(student=net, teacher=net) == (
        "student and teacher share their weights, e.g. 1.weight; make a copy with copy.deepcopy"
    )
    assert refusal(teacher=None) == "kd needs a teacher; pass it as teacher="
    assert refusal(teacher=plain(classes=3)) == "kd: the teacher has 3 logits, not 7, one for each class"
    assert refusal(num_classes=9) == "kd: the student has 7 logits, not 9, one for each class"
    assert refusal("crd", student=network(), teacher=network(seed=2)) == (
        "crd needs the class of every training image (train_labels was not given)"
    )
    assert refusal(temprature=2) == "kd has no hyper-parameter 'temprature'; did you mean 'temperature'?"
    assert refusal(temperature=0) == "kd: temperature = 0 should be a finite number, above 0"
    assert refusal(temperature=np.float32(0)) == "kd: temperature = 0.0 should be a finite number, above 0"
    assert refusal(label_loss="ce").startswith("label_loss: no loss is called 'ce'; ")
    assert refusal("dk").startswith("no method is called 'dk'; did you mean ")
    assert refusal(5) == "method: should be the name of a method or a subclass of kd_bench.Method (it is 5)"
    assert refusal(student="resnet8") == (
        "kd: student should be a torch.nn.Module; kd_bench.create_model builds one (it is 'resnet8')"
    )
    assert refusal(student=nn.Sequential(nn.Flatten(), nn.ReLU())) == (
        "kd: student should be a torch.nn.Module with parameters (it is "
        "Sequential( (0): Flatten(start_dim=1, end_dim=-1) (1): ReLU()"
    )
    assert refusal(teacher=5) == "kd: teacher should be a torch.nn.Module with parameters (it is 5)"
    assert refusal(student=nn.Flatten()) == (
        "kd: student should be a torch.nn.Module with parameters (it is Flatten(start_dim=1, end_dim=-1))"
    )
    assert refusal(student=nn.Conv2d(3, CLASSES, 1)) == (
        "kd: student should return logits, (B, K); for one image it returns a tensor (1, 7, 32, 32)"
    )
    assert refusal(images=IMAGES[:, :, :16]).startswith(
        "kd: student: model Sequential: cannot take images of 3x16x32 ("
    )
    assert refusal(images=IMAGES.byte()) == (
        "images: should be floating-point numbers as the networks take them (they are torch.uint8)"
    )
    assert refusal(images=[1]) == "images: should be a batch, a tensor (B, C, H, W) (it is list)"
    assert refusal(train_labels=[0, 9]) == "train_labels: should be classes from 0 to 6, and reach from 0 to 9"
    assert refusal(train_labels=["a"]) == "train_labels: should be whole numbers, one for each image (it is list)"
    assert refusal(NoSuper) == "NoSuper: __init__ should call super().__init__(pair) first"
    assert refusal(NoForward).startswith("NoForward: NoForward has no function forward(self, student, teacher, batch)")
    for name in ADVERSARIAL:
        assert refusal(name) == f"{name} trains on perturbed images, which only kd-bench run makes"


def test_standardised_logits_and_sample_weights() -> None:
    student, teacher = plain(1), plain(2)
    student_logits, teacher_logits = student(IMAGES), teacher(IMAGES)
    weights = losses.entropy_weights(student_logits, teacher_logits, 3.0)
    pair = losses.logit_standardise(student_logits), losses.logit_standardise(teacher_logits)
    settings: dict[str, Any] = {"standardise": True, "entropy_weights": 3}
    module = distiller("kd", student=student, teacher=teacher, images=IMAGES, temperature=2.0, **settings)
    terms = module(IMAGES, LABELS)
    torch.testing.assert_close(terms["kd"], 0.9 * losses.kd(*pair, 2.0, weights))
    torch.testing.assert_close(terms["ce"], 0.1 * losses.cross_entropy(student_logits, LABELS))
    squares = distiller(Squares, student=student, teacher=teacher, images=IMAGES, standardise=True)
    torch.testing.assert_close(squares(IMAGES, LABELS)["squares"], 2 * (pair[0] - pair[1]).square().mean())
    assert refusal("crd", standardise=True).startswith("standardise: crd compares features and not logits; ")
    assert refusal(Squares, entropy_weights=3).startswith("entropy_weights: Squares does not weigh single samples; ")
    assert refusal(standardise="maybe") == "kd: standardise: should be true or false (it is 'maybe')"
    assert refusal(entropy_weights=0) == "kd: entropy_weights: should be above 0 (it is 0)"


def test_an_index_that_is_missing() -> None:
    with pytest.raises(UserError, match="crd: index is missing: the position of each image in the training set"):
        _crd()(IMAGES, LABELS)


def test_the_example() -> None:
    result = doctest.testmod(distiller_module)
    assert result.attempted > 5 and result.failed == 0


def test_layers_that_stay_in_the_student() -> None:
    student, teacher = network(), network("cifar_resnet14", 2)
    kept = distiller("simkd", student=student, teacher=teacher, images=IMAGES)
    assert kept.deployed is not student
    logits = kept.deployed.eval()(IMAGES)
    weight, bias = teacher.get_classifier().weight, teacher.get_classifier().bias
    projected = kept.method.inference_head.project(student.forward_features(IMAGES))
    torch.testing.assert_close(logits, torch.nn.functional.linear(projected.mean((2, 3)), weight, bias))
    kd = distiller("kd", student=student, teacher=teacher, images=IMAGES)
    assert kd.deployed is student


def test_a_second_view() -> None:
    student, teacher = network(), network("cifar_resnet14", 2)
    two = distiller("mlkd", student=student, teacher=teacher, images=IMAGES).eval()
    second = IMAGES.flip(-1)
    terms = two(IMAGES, LABELS, second_images=second)
    first_terms, second_terms = two(IMAGES, LABELS), two(second, LABELS)
    torch.testing.assert_close(terms["ce"], first_terms["ce"] + second_terms["ce"])
    strong, weak = student(second), student(IMAGES)
    samples, *_ = losses.mlkd_terms(weak, teacher(IMAGES), strong=(strong, teacher(second)))
    torch.testing.assert_close(terms["samples"], 0.9 * samples)
    kd = distiller("kd", student=student, teacher=teacher, images=IMAGES)
    with pytest.raises(UserError, match="kd: it reads one view of the images only; leave second_images out"):
        kd(IMAGES, LABELS, second_images=second)
