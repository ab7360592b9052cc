"""Adversarial training: resumed, alone and in company the same; perturbations in the ball; weights put back."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.data.generated import MixedLoader
from kd_bench.robustness.weight_perturbation import perturb_weights, perturbed_parameters
from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError
from tests.data.generated_images import write_images
from tests.training.parts import CPU, MemoryWriter, same, splits, trial

METHODS = ("trades", "improved_trades", "ikl_at")
EPS = 8 / 255
SETTINGS: dict[str, Any] = {
    "eps": EPS,
    "steps": 2,
    "ramp": True,
    "weight_perturbation": {"gamma": 0.01, "from_epoch": 2},
    "average": {"decay": 0.5, "from_epoch": 1},
}


@pytest.fixture(scope="module")
def data():
    return splits(train=48, test=24)


def of(method: str = "ikl_at", settings: dict[str, Any] | None = None, **changes: Any):
    adversarial = {**SETTINGS, **(settings or {})}
    return trial(method, taught=False, adversarial=adversarial, **{"input": {"size": 16}, **changes})


def train(trials, data, states=None, data_dir: Path | None = None) -> list[MemoryWriter]:
    writers = [MemoryWriter() for _ in trials]
    members = [
        build_student(member_trial, data, None, writer) for member_trial, writer in zip(trials, writers, strict=True)
    ]
    for member, state in zip(members, states or [None] * len(members), strict=True):
        if state is not None:
            member.restore(copy.deepcopy(state))
    fit(CohortModule(members), *loaders(trials[0], data, CPU, data_dir=data_dir), CPU)
    assert all(writer.crash is writer.divergence is None for writer in writers), [writer.crash for writer in writers]
    return writers


def member_and_batch(data, **changes: Any) -> tuple[AdversarialStudentModule, Batch]:
    member_trial = of(**changes)
    member = build_student(member_trial, data, None, MemoryWriter())
    assert isinstance(member, AdversarialStudentModule)
    return member.train(), next(iter(loaders(member_trial, data, CPU)[0]))


@pytest.fixture(scope="module")
def cohort_writers(data):
    return dict(zip(METHODS, train([of(method) for method in METHODS], data), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_alone_is_as_in_company(data, cohort_writers, method: str) -> None:
    assert same(train([of(method)], data)[0].states, cohort_writers[method].states)


@pytest.mark.parametrize("epoch", [1, 2])
def test_resuming_is_exact(data, cohort_writers, epoch: int) -> None:
    states = [cohort_writers[method].states[epoch - 1] for method in METHODS]
    for method, writer in zip(METHODS, train([of(method) for method in METHODS], data, states), strict=True):
        assert same(writer.states[-1], cohort_writers[method].states[-1]), method


def test_methods_do_differ(cohort_writers) -> None:
    networks = [cohort_writers[method].states[-1]["network"] for method in METHODS]
    assert not same(networks[0], networks[1])  # beta is 6 and 9
    assert not same(networks[1], networks[2])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("start", ["none", "gaussian", "uniform"])
@pytest.mark.parametrize("inner", ["own", "kl", "cross_entropy"])
def test_perturbed_images_stay_in_the_ball_and_raise_the_loss(data, norm: str, start: str, inner: str) -> None:
    eps = EPS if norm == "Linf" else 0.5
    settings = {"norm": norm, "start": start, "inner": inner, "eps": eps, "steps": 4, "ramp": False}
    # From the image itself the divergence has no gradient, so there the cross-entropy is the one to look at.
    member, batch = member_and_batch(data, settings=settings)
    before = {key: value.clone() for key, value in member.state_dict().items()}
    perturbed = member.perturb(batch)
    change = (perturbed.double() - batch.images.double()).flatten(1)
    length = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
    assert length.max() <= eps
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert all(module.training for module in member.network.modules())
    assert same(before, dict(member.state_dict()))
    if start == "none" and inner != "cross_entropy":
        return
    member.network.eval()
    loss = [
        torch.nn.functional.cross_entropy(member.network(member.view(images)), batch.labels)
        for images in (batch.images, perturbed)
    ]
    assert length.min() > 0.2 * eps
    assert inner != "cross_entropy" or loss[1] > loss[0]


def test_draws_depend_on_names_alone(data) -> None:
    member, batch = member_and_batch(data)
    first = member.perturb(batch)
    torch.manual_seed(99)
    assert torch.equal(member.perturb(batch), first)
    other = Batch(batch.images, batch.labels, batch.index, batch.epoch, batch.step + 1)
    assert not torch.equal(member.perturb(other), first)


def test_images_are_those_of_the_set_and_the_network_sees_them_normalised(data) -> None:
    member_trial = of(augment={"crop": 0, "flip": False})
    member = build_student(member_trial, data, None, MemoryWriter())
    train_loader, test_loader = loaders(member_trial, data, CPU)
    batch = next(iter(train_loader))
    assert torch.equal(batch.images, data.train_images[batch.index].float() / 255)
    assert torch.equal(next(iter(test_loader)).images, data.test_images.float() / 255)
    _, view = build_network(member_trial, data)
    plain = loaders(trial("none", input={"size": 16}, augment={"crop": 0, "flip": False}), data, CPU)[0]
    torch.testing.assert_close(member.view(batch.images), view(next(iter(plain)).images))


def test_a_step_is_that_of_the_perturbed_images_and_the_images(data) -> None:
    """One step of SGD by hand: perturbed images first, then the images, then the method's loss."""
    member, batch = member_and_batch(data, settings={"weight_perturbation": None})
    other, _ = member_and_batch(data, settings={"weight_perturbation": None})
    images = member.perturb(batch)
    with torch.no_grad():
        images = images.clone()
    adversarial, natural = other.network(other.view(images)), other.network(other.view(batch.images))
    terms = other.method(Outputs(adversarial), Outputs(natural), batch)
    torch.stack(list(terms.values())).sum().backward()
    other.optimizer.step()
    member.step(None, MicroBatch(batch), lambda loss: loss.backward())
    assert same(dict(member.network.state_dict()), dict(other.network.state_dict()))


def test_weights_are_put_back_to_the_bit_and_buffers_see_no_perturbed_weights(data) -> None:
    settings = {"weight_perturbation": {"gamma": 0.1, "from_epoch": 1}, "ramp": False}
    member, batch = member_and_batch(data, settings=settings)
    before = {key: value.clone() for key, value in member.network.state_dict().items()}
    seen: list[bool] = []
    images = member.perturb(batch)
    with member._weights_perturbed(images, MicroBatch(batch)):
        inside = dict(member.network.state_dict())
        moved = {name for name, value in inside.items() if not torch.equal(value, before[name])}
        for name in moved:
            change = (inside[name] - before[name]).norm() / before[name].norm()
            assert change == pytest.approx(0.1, rel=1e-4)
        seen.append(True)
    assert seen
    expected = {
        name for name, parameter in member.network.named_parameters() if name.endswith("weight") and parameter.ndim > 1
    }
    assert moved == expected
    assert len(perturbed_parameters(member.network)) == len(expected)
    assert same(dict(member.network.state_dict()), before)


def test_perturbed_weights_raise_the_loss(data) -> None:
    settings = {"weight_perturbation": {"gamma": 0.01, "from_epoch": 1}, "ramp": False}
    member, batch = member_and_batch(data, settings=settings)
    images, part = member.perturb(batch), MicroBatch(batch)
    with torch.no_grad():
        plain = member._loss(images, part, seeding.STUDENT).loss
    with member._weights_perturbed(images, part), torch.no_grad():
        assert member._loss(images, part, seeding.STUDENT).loss > plain


def test_weights_are_put_back_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), perturb_weights([weight], [torch.ones(3, 3)], 0.5):
        assert not torch.equal(weight, before)
        raise RuntimeError("inside")
    assert torch.equal(weight, before)


def test_weight_perturbation_begins_in_its_epoch(data) -> None:
    plain, later = train([of(settings={"weight_perturbation": None}), of()], data)
    assert same(plain.states[0]["network"], later.states[0]["network"])
    assert not same(plain.states[1]["network"], later.states[1]["network"])


def test_the_average_over_epochs_is_what_is_evaluated(data, cohort_writers) -> None:
    states = cohort_writers["ikl_at"].states
    for key, value in states[-1]["network"].items():
        average = states[-1]["epoch_average"][f"module.{key}"]
        if value.is_floating_point():
            first, second, third = (state["network"][key] for state in states)
            torch.testing.assert_close(average, 0.25 * first + 0.25 * second + 0.5 * third)
    member = build_student(of(), data, None, MemoryWriter())
    assert (member.evaluated_weights, member.evaluated_network) == ("last", member.network)
    member.restore(states[-1])
    assert member.evaluated_weights == "average over epochs"
    row = states[-1]["history"][-1]
    for network, column in ((member.evaluated_network.eval(), "top1"), (member.network.eval(), "last_top1")):
        with torch.no_grad():
            hits = network(member.view(data.test_images / 255)).argmax(1) == data.test_labels
        assert row[column] == pytest.approx(100 * hits.double().mean().item())


def test_the_average_begins_in_its_epoch(data) -> None:
    (writer,) = train([of(settings={"average": {"decay": 0.5, "from_epoch": 2}})], data)
    _, second, third = (state["network"]["fc.weight"] for state in writer.states)
    assert writer.states[0]["history"][0]["top1"] == writer.states[0]["history"][0]["last_top1"]
    torch.testing.assert_close(writer.states[-1]["epoch_average"]["module.fc.weight"], (second + third) / 2)


@pytest.mark.parametrize(
    ("settings", "changes", "name"),
    [({"average": None}, {"ema": 0.5}, "average over steps"), ({"average": None}, {}, "last")],
)
def test_other_networks_that_can_be_evaluated(data, settings, changes, name: str) -> None:
    member_trial = of(settings=settings, **changes)
    (writer,) = train([member_trial], data)
    member = build_student(member_trial, data, None, MemoryWriter())
    member.restore(writer.states[-1])
    assert member.evaluated_weights == name
    assert ("last_top1" in writer.states[-1]["history"][-1]) == bool(changes)
    assert same(train([member_trial], data, [writer.states[0]])[0].states[-1], writer.states[-1])


def test_a_second_view_counts_with_its_weight(data) -> None:
    member_trial = of(settings={"second_view": {"weight": 0.3, "autoaugment": True}, "weight_perturbation": None})
    member = build_student(member_trial, data, None, MemoryWriter())
    assert isinstance(member, AdversarialStudentModule)
    batch = next(iter(loaders(member_trial, data, CPU)[0]))
    half = len(batch.images) // 2
    assert half == member_trial.batch_size
    assert torch.equal(batch.index[:half], batch.index[half:])
    assert torch.equal(batch.labels[:half], batch.labels[half:])
    plain = next(iter(loaders(of(), data, CPU)[0]))
    assert torch.equal(batch.images[:half], plain.images)
    assert (batch.images[:half] != batch.images[half:]).flatten(1).any(1).all()
    member.train()
    terms = member._loss(batch.images, MicroBatch(batch), seeding.STUDENT).terms
    adversarial = natural = member.network(member.view(batch.images))
    views = []
    for rows in (slice(half), slice(half, None)):
        part = Batch(batch.images[rows], batch.labels[rows], batch.index[rows], 0, 0)
        views.append(member.method(Outputs(adversarial[rows]), Outputs(natural[rows]), part))
    torch.testing.assert_close(terms["ce"], (views[0]["ce"] + views[1]["ce"]) / 2)
    torch.testing.assert_close(terms["soft_ce"], views[0]["soft_ce"] + 0.3 * views[1]["soft_ce"])


def test_views_of_a_method_without_a_loss_of_the_labels(data, monkeypatch: pytest.MonkeyPatch) -> None:
    member, batch = member_and_batch(data, settings={"second_view": {"weight": 0.5}, "weight_perturbation": None})
    monkeypatch.setattr(member.method, "forward", lambda student, *_: {"norm": student.logits.square().mean()})
    norm = member._loss(batch.images, MicroBatch(batch), seeding.STUDENT).terms["norm"]
    logits = member.network(member.view(torch.cat([batch.images, batch.images])))[: len(batch.images)]
    half = len(batch.images) // 2
    torch.testing.assert_close(norm, logits[:half].square().mean() + 0.5 * logits[half:].square().mean())


def test_the_class_weights_are_of_the_first_view(data) -> None:
    settings = {"second_view": {"weight": 1.0}, "weight_perturbation": {"from_epoch": 1}}
    member, batch = member_and_batch(data, settings=settings)
    member.step(None, MicroBatch(batch), lambda loss: loss.backward())
    assert int(member.method.state_dict()["counts"].sum()) == len(batch.images) // 2


def test_weights_are_perturbed_by_both_views_alike(data) -> None:
    """As in the released code, the weight of the second view does not count for the perturbation of the weights."""
    inside = []
    for weight in (0.0, 0.3, 1.0):
        settings = {"second_view": {"weight": weight, "cutout": 8}, "weight_perturbation": {"from_epoch": 1}}
        member, batch = member_and_batch(data, settings=settings)
        before = {key: value.clone() for key, value in member.network.state_dict().items()}
        with member._weights_perturbed(batch.images, MicroBatch(batch)):
            inside.append({key: value.clone() for key, value in member.network.state_dict().items()})
        assert not same(inside[-1], before)
    assert same(inside[0], inside[1])
    assert same(inside[1], inside[2])


def test_two_views_through_a_whole_training(data) -> None:
    member_trial = of(settings={"second_view": {"cutout": 8}})
    (writer,) = train([member_trial], data)
    assert same(train([member_trial], data, [writer.states[0]])[0].states[-1], writer.states[-1])


def write_generated(folder: Path, images: int = 40, classes: int = 4, **changes: Any) -> str:
    write_images(folder / "more.npz", images, classes=classes, **changes)
    return hashlib.sha256((folder / "more.npz").read_bytes()).hexdigest()


def test_generated_images_have_their_share_of_every_batch(data, tmp_path) -> None:
    digest = write_generated(tmp_path)
    settings = {"generated": {"path": "more.npz", "sha256": digest, "share": 0.7}}
    member_trial = of(settings=settings, augment={"crop": 0, "flip": False})
    loader = loaders(member_trial, data, CPU, data_dir=tmp_path)[0]
    assert isinstance(loader, MixedLoader)
    batches = list(loader)
    assert len(batches) == 3  # 48 images in batches of 16, however many are generated
    train_indices = torch.cat([batch.index[batch.index < 48] for batch in batches])
    assert len(train_indices.unique()) == len(train_indices) == 3 * 5
    for batch in batches:
        drawn = batch.index >= 48
        assert int(drawn.sum()) == int(0.7 * 16)
        with np.load(tmp_path / "more.npz") as archive:
            places = (batch.index[drawn] - 48).numpy()
            expected = torch.from_numpy(archive["image"][places].transpose(0, 3, 1, 2)).float() / 255
            assert torch.equal(batch.images[drawn], expected)
            assert batch.labels[drawn].tolist() == archive["label"][places].tolist()
    again = [batch.index.tolist() for batch in loader]
    assert again == [batch.index.tolist() for batch in batches]
    loader.set_epoch(1)
    assert [batch.index.tolist() for batch in loader] != again
    (writer,) = train([member_trial], data, data_dir=tmp_path)
    assert len(writer.states) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((40, 8, 8, 3), np.uint8)}, r"image should be \(N, 32, 32, 3\)"),
        ({"label": np.zeros(40)}, "whole numbers"),
        ({"label": np.full(40, 4)}, "classes from 0 to 3"),
        ({"label": np.zeros(39, int)}, r"\(40,\) whole numbers"),
    ],
)
def test_generated_images_that_do_not_fit(data, tmp_path, changes: dict[str, Any], message: str) -> None:
    digest = write_generated(tmp_path, **changes)
    member_trial = of(settings={"generated": {"path": "more.npz", "sha256": digest}})
    with pytest.raises(UserError, match=message):
        loaders(member_trial, data, CPU, data_dir=tmp_path)


def test_generated_images_that_are_not_those_of_the_trial(data, tmp_path) -> None:
    write_generated(tmp_path)
    member_trial = of(settings={"generated": {"path": "more.npz", "sha256": "0" * 64}})
    with pytest.raises(UserError, match="its SHA-256 is"):
        loaders(member_trial, data, CPU, data_dir=tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        loaders(member_trial, data, CPU, data_dir=tmp_path / "elsewhere")
    (tmp_path / "more.npz").write_bytes(b"PK\x03\x04 nothing")
    digest = hashlib.sha256((tmp_path / "more.npz").read_bytes()).hexdigest()
    member_trial = of(settings={"generated": {"path": "more.npz", "sha256": digest}})
    with pytest.raises(UserError, match="cannot be read"):
        loaders(member_trial, data, CPU, data_dir=tmp_path)


def test_bfloat16_trains(data) -> None:
    (writer,) = train([of(precision="bfloat16", settings={"norm": "L2", "eps": 0.5})], data)
    assert 0 < writer.states[-1]["history"][-1]["train_loss"] < 100


PREPARED = """
from kd_bench.methods.adversarial import AdversarialMethod

class Own(AdversarialMethod):
    family = "adversarial"
    needs_teacher = False

    def __init__(self, pair, *, preparation_epochs: int = 1):
        super().__init__(pair)

    def prepare(self, student, teacher, batch):
        return {"ce": self.label_loss(student, batch)}

    def forward(self, adversarial, natural, batch):
        return {"ce": self.label_loss(adversarial, batch)}
"""


def test_a_preparation_is_refused(data, tmp_path: Path) -> None:
    """Its epochs would be trained by ``forward`` on images perturbed for an epoch below 0."""
    (tmp_path / "own.py").write_text(PREPARED)
    name = f"{tmp_path / 'own.py'}:Own"
    with pytest.raises(UserError, match=r"own\.py:Own: preparation_epochs = 1 should be 0, because"):
        build_student(of(name, hyperparameters={"preparation_epochs": 1}), data, None, MemoryWriter())
    build_student(of(name, hyperparameters={"preparation_epochs": 0}), data, None, MemoryWriter())
