"""Layers that a method keeps in the student are trained, averaged, saved, loaded, counted and shared as the student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.step_cost import count_cohort
from kd_bench.models import weights
from kd_bench.models.registry import resolve, source_hash
from kd_bench.models.student_with_head import StudentWithHead
from kd_bench.training.build import build_network, build_student, load_network
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch, split_micro_batches
from kd_bench.training.student import StudentModule
from kd_bench.training.teacher import Teacher
from kd_bench.utils.errors import UserError
from tests.training.parts import CPU, MemoryWriter, splits, train, trial

DATA = splits()


def teacher_of(settings: Trial) -> nn.Module:
    assert isinstance(settings.teacher, Trial)
    return build_network(settings.teacher, DATA)[0].eval()


def built(**changes: Any) -> StudentModule:
    settings = trial("simkd", **changes)
    return build_student(settings, DATA, teacher_of(settings), MemoryWriter())


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_deployed_network_is_the_student_with_the_layers() -> None:
    member = built()
    deployed = member.evaluated_network
    assert isinstance(deployed, StudentWithHead)
    assert {name.partition(".")[0] for name in deployed.state_dict()} == {"network", "head"}
    assert not any(name.startswith("network.fc") for name in deployed.state_dict())
    images = torch.randn(2, 3, 32, 32)
    member.eval()
    features = member.network.forward_features(images)
    assert torch.equal(deployed(images), member.method.inference_head(features))
    assert deployed(images).shape == (2, 4)
    assert count(deployed) == count(member.network) + count(member.method)


def test_the_weights_before_the_classifier_are_those_of_every_method() -> None:
    simkd_state, plain_state = built().network.state_dict(), build_network(trial("none"), DATA)[0].state_dict()
    assert plain_state.keys() - simkd_state.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, plain_state[name]) for name, value in simkd_state.items())


def test_the_training_accuracy_is_that_of_the_layers() -> None:
    """A step that changes nothing, so that the logits can be computed again."""
    member = built(optimizer={"name": "sgd", "lr": 1e-12, "weight_decay": 0}, epochs=1)
    settings = member.trial
    teacher = Teacher(teacher_of(settings), nn.Identity(), {"running": member.method.needs.teacher}, {}, settings, 72)
    batch = next(iter(loaders(settings, DATA, CPU)[0]))
    copied = copy.deepcopy(member.deployed).train()
    member.train()
    member.begin_epoch(0)
    member.step(teacher(batch), MicroBatch(batch), torch.Tensor.backward)
    hits = (copied(batch.images).argmax(-1) == batch.labels).double().mean()
    metrics = member.train_sums.compute()
    assert metrics["top1"] == pytest.approx(100 * float(hits))
    assert {"loss", "feature"} <= set(metrics)


def test_the_average_of_the_weights_has_the_layers() -> None:
    (writer,) = train([trial("simkd", epochs=3, ema=0.5)], DATA)
    assert writer.crash is None
    average = writer.states[-1]["average"]
    trained = writer.states[-1]["method"]
    name = "projector.0.weight"
    assert not torch.equal(average[f"module.head.{name}"], trained[f"inference_head.{name}"])
    assert torch.equal(average["module.head.classifier.weight"], trained["inference_head.classifier.weight"])
    row = writer.states[-1]["history"][-1]
    assert 0 <= row["average_top1"] <= 100


def _trained(**changes: Any) -> StudentModule:
    """A member after two epochs."""
    settings = trial("simkd", epochs=2, **changes)
    (writer,) = train([settings], DATA)
    member = build_student(settings, DATA, teacher_of(settings), MemoryWriter())
    member.restore(writer.states[-1])
    return member.eval()


@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"input": {"size": 48}}], ids=str)
def test_saved_weights_are_loaded_and_have_the_measured_accuracy(changes: dict[str, Any], tmp_path: Path) -> None:
    member, file = _trained(**changes), tmp_path / "student.safetensors"
    weights.write(file, member.evaluated_network.state_dict(), {})
    network, view = load_network(member.trial, file, DATA)
    assert isinstance(network, StudentWithHead)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(view(images)), member.deployed(member.view(images)))
    top1 = evaluate_accuracy(network, view, DATA, CPU).top1
    assert top1 == pytest.approx(member.history[-1]["top1"])


def test_its_weights_are_not_those_of_the_network_alone(tmp_path: Path) -> None:
    member, file = _trained(), tmp_path / "student.safetensors"
    weights.write(file, member.evaluated_network.state_dict(), {})
    with pytest.raises(UserError, match=r"does not hold the weights of cifar_resnet8: .* it lacks 'fc.weight'"):
        load_network(trial("kd"), file, DATA)
    weights.write(file, build_network(trial("kd"), DATA)[0].state_dict(), {})
    with pytest.raises(UserError, match="does not hold the weights of"):
        load_network(member.trial, file, DATA)


def test_a_network_with_parts_of_the_same_names_is_no_student_with_a_head(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        '    """A line."""\n\n'
        "    def __init__(self, num_classes, image_size=32):\n        super().__init__()\n"
        "        self.network, self.head = nn.Flatten(), nn.Linear(3 * image_size**2, num_classes)\n"
        "        self.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten())\n\n"
        "    def forward(self, x):\n        return self.head(self.network(x))\n"
    )
    name = resolve(f"{tmp_path / 'net.py'}:Net")
    settings, file = trial("none", model=name, model_source=source_hash(name)), tmp_path / "student.safetensors"
    network, _ = build_network(settings, DATA)
    weights.write(file, network.state_dict(), {})
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_network(settings, file, DATA)[0](images), network(images))


def test_the_estimate_counts_the_layers() -> None:
    plain, simkd = count_cohort([trial("none")], DATA), count_cohort([trial("simkd")], DATA)
    average = count_cohort([trial("simkd", ema=0.9)], DATA)
    assert not simkd.members[0].uncounted
    # of 16 images of 8 x 8 pixels at the end: 64 to 32 channels, 3 x 3, and to 64; 4 classes in place of 4
    per_image = 2 * 64 * (64 * 32 + 9 * 32 * 32 + 32 * 64)
    assert simkd.members[0].evaluation.flops - plain.members[0].evaluation.flops == 16 * per_image
    # the layers are trained, and their input has a gradient
    assert simkd.members[0].step.flops - plain.members[0].step.flops == pytest.approx(3 * 16 * per_image, rel=0.01)
    # the average has the layers, too, and one counter
    counters = 8
    assert average.members[0].average == simkd.members[0].parameters + counters


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ("mobilenetv3_small_050", "cifar_resnet8", "model mobilenetv3_small_050: has no output 'class_maps'"),
        ("test_vit", "cifar_resnet8", "has no output 'features': its last features are not a"),
        ("cifar_resnet14", "test_vit", "has no output 'features': its last features are not a"),
    ],
)
def test_networks_that_do_not_fit_are_named(teacher: str, student: str, message: str) -> None:
    settings = trial("simkd", model=student)
    taught = trial("none", model=teacher, input={"size": 160}) if "vit" in teacher else trial("none", model=teacher)
    changes: dict[str, Any] = {"teacher": taught, "input": {"size": 160}} if "vit" in student else {"teacher": taught}
    settings = Trial.model_validate(settings.settings() | {"teacher": taught.settings()} | _inputs(changes))
    with pytest.raises(UserError, match=message):
        build_student(settings, DATA, build_network(taught, DATA)[0].eval(), MemoryWriter())


def _inputs(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key == "input"}


PLUGIN = """
import dataclasses
from torch import nn
from kd_bench.methods.base import Method, Terms
from kd_bench.types import Needs

class Own(Method):
    keeps_layers = {keeps}
    needs = Needs(student=frozenset({{"{output}"}}))

    def __init__(self, pair):
        super().__init__(pair)
        if {sets}:
            self.inference_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({width}, {classes}))

    def forward(self, student, teacher, batch):
        logits = self.inference_head(student.features)
        student = {student}
        return Terms({{"ce": self.label_loss(student, batch)}}, logits)
"""
REPLACED = "dataclasses.replace(student, logits=logits)"


def plugin(folder: Path, **changes: Any) -> Trial:
    texts = {
        "keeps": True,
        "sets": True,
        "output": "features",
        "width": 64,
        "classes": 4,
        "student": REPLACED,
    } | changes
    file = folder / "own.py"
    file.write_text(PLUGIN.format(**texts))
    return trial(f"{file}:Own", epochs=1)


def test_a_users_method_keeps_layers(tmp_path: Path) -> None:
    settings, file = plugin(tmp_path), tmp_path / "student.safetensors"
    (writer,) = train([settings], DATA)
    assert writer.crash is None
    assert "inference_head.2.weight" in writer.states[-1]["method"]
    member = build_student(settings, DATA, teacher_of(settings), MemoryWriter())
    member.restore(writer.states[-1])
    weights.write(file, member.evaluated_network.state_dict(), {})
    network, view = load_network(settings, file, DATA)
    assert evaluate_accuracy(network, view, DATA, CPU).top1 == pytest.approx(member.history[-1]["top1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": False}, "keeps_layers is True, and __init__ sets no inference_head"),
        ({"keeps": False}, "keeps_layers is False, and __init__ sets an inference_head"),
        ({"output": "pooled"}, "its inference_head reads the student's 'features', and needs.student lacks them"),
        ({"classes": 7}, r"should map \(B, 64, 8, 8\) to logits, \(B, 4\) \(it returns \(1, 7\) for one image\)"),
        ({"width": 63}, r"should map \(B, 64, 8, 8\) to logits, \(B, 4\) \(mat1 and mat2"),
    ],
)
def test_layers_that_do_not_fit_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = plugin(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        build_student(settings, DATA, teacher_of(settings), MemoryWriter())


def test_the_loss_with_the_labels_needs_logits(tmp_path: Path) -> None:
    (writer,) = train([plugin(tmp_path, student="student")], DATA)
    assert writer.crash is not None
    assert "label_loss: the student's classifier was removed, so student.logits are no logits" in writer.crash


PROCESSES, STEPS = 2, 3


def _steps(member: StudentModule, rank: int | None, data: ArrayDataset = DATA) -> None:
    """Trains a few steps: on a process's half of each batch, or on both halves as micro-batches."""
    settings = member.trial
    teacher = Teacher(teacher_of(settings), nn.Identity(), {"running": member.method.needs.teacher}, {}, settings, 72)
    member.train()
    member.begin_epoch(0)
    for batch in list(loaders(settings, data, CPU)[0])[:STEPS]:
        parts = split_micro_batches(batch, 8)
        if rank is not None:
            half = list(parts)[rank].batch
            parts = iter([MicroBatch(half, rank)])
        for part in parts:
            member.step(teacher(part.batch), part, torch.Tensor.backward)


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    member = built(ema=0.9)
    _steps(member, rank)
    member.before_evaluation()
    assert member.average is not None
    torch.save(member.evaluated_network.state_dict(), folder / f"{rank}.pth")
    torch.save(member.average.module.state_dict(), folder / f"average-{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    mp.spawn(_work, (tmp_path,), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(PROCESSES))
    averages = [torch.load(tmp_path / f"average-{rank}.pth", weights_only=True) for rank in range(PROCESSES)]
    for name, value in averages[0].items():  # running statistics, too: each process tests it on a part of the images
        assert torch.equal(value, averages[1][name]), name
    alone = built(ema=0.9)
    _steps(alone, None)
    expected = alone.evaluated_network.state_dict()
    assert first.keys() == second.keys() == expected.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if "running" not in name and "tracked" not in name:  # these see the micro-batches in another order
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)
