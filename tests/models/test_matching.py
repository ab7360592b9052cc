"""Checkpoints whose state dict holds more than one network's weights, or has prefixes before the keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_bench.models import create
from kd_bench.models.convert import convert
from kd_bench.models.matching import closest_networks, find_weights
from kd_bench.models.weights import load_into, read
from kd_bench.utils.errors import UserError

State = dict[str, Tensor]
STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"  # the teacher has all keys of the student, in the same shapes


def built(name: str = STUDENT, classes: int = 7, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(name, classes)


class Module(lightning.LightningModule):
    """Holds networks and a loss with a buffer, as modules of users do."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.1})
        for name, network in networks.items():
            self.add_module(name, network)
        self.criterion = nn.Linear(3, 2)
        self.register_buffer("class_prior", torch.ones(7))


def checkpoint(path: Path, module: lightning.LightningModule) -> Path:
    """Writes a checkpoint as Lightning's trainer does."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", enable_model_summary=False, **options)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def assert_loads(file: Path, expected: nn.Module, key: str | None = None, name: str = STUDENT) -> None:
    network = built(name, seed=9)
    load_into(network, read(file, key).state, file, name)
    state = expected.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("attribute", ["backbone", "encoder", "net", "teacher_free_student"])
def test_a_network_beside_a_loss(tmp_path: Path, attribute: str) -> None:
    network = built()
    assert_loads(checkpoint(tmp_path / "a.ckpt", Module(**{attribute: network})), network)


def test_a_network_in_modules_in_modules(tmp_path: Path) -> None:
    network = built()
    outer = nn.Module()
    outer.net = nn.DataParallel(network)
    assert_loads(checkpoint(tmp_path / "a.ckpt", Module(model=outer)), network)


def test_a_larger_teacher_beside_its_student(tmp_path: Path) -> None:
    student, teacher = built(), built(TEACHER)
    file = checkpoint(tmp_path / "a.ckpt", Module(teacher=teacher, student=student))
    assert_loads(file, student)
    assert_loads(file, teacher, name=TEACHER)
    assert find_weights(student, read(file).state, file, STUDENT).prefix == "student."


def test_a_teacher_and_a_student_of_one_architecture(tmp_path: Path) -> None:
    student, teacher = built(), built(seed=1)
    file = checkpoint(tmp_path / "a.ckpt", Module(teacher=teacher, student=student))
    with pytest.raises(UserError) as caught:
        load_into(built(), read(file).state, file, STUDENT)
    assert str(caught.value) == (
        f"{file}: holds weights of {STUDENT} under 'student' and 'teacher', which fit equally well; choose one by "
        f"--key, as in: kd-bench teacher convert {file} NEW.safetensors --key 'student'"
    )
    for key in ("student", "state_dict.student"):
        assert_loads(file, student, key)
    assert_loads(file, teacher, "teacher")
    with pytest.raises(UserError, match="'student' and 'teacher', which fit equally well; choose one by --key"):
        convert(file, tmp_path / "a.safetensors", STUDENT, None)
    assert not (tmp_path / "a.safetensors").exists()
    line = convert(file, tmp_path / "a.safetensors", STUDENT, "teacher")
    assert f" of {STUDENT}, from 'teacher' in a torch file; sha256 " in line
    assert_loads(tmp_path / "a.safetensors", teacher)
    assert read(file, "teacher").facts == read(file).facts != {}


def test_keys_below_a_prefix_that_all_keys_have(tmp_path: Path) -> None:
    student, teacher = built(), built(seed=1)
    both = {f"model.{name}.{key}": value for name, network in (("student", student), ("teacher", teacher))
            for key, value in network.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": both}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", student, "student")
    assert_loads(tmp_path / "a.pth", teacher, "state_dict.model.teacher")
    with pytest.raises(UserError, match=r"has no key 'studnt'; there are: 'state_dict'$"):
        read(tmp_path / "a.pth", "studnt")


def test_the_number_of_classes_decides_between_equal_networks(tmp_path: Path) -> None:
    student, teacher = built(classes=7), built(classes=5)
    file = checkpoint(tmp_path / "a.ckpt", Module(teacher=teacher, student=student))
    assert_loads(file, student)
    with pytest.raises(UserError, match="'student' and 'teacher', which fit equally well"):
        load_into(built(classes=9), read(file).state, file, STUDENT)


@pytest.mark.parametrize("teacher", [STUDENT, TEACHER])
def test_a_teacher_inside_the_student(tmp_path: Path, teacher: str) -> None:
    student = built()
    state = student.state_dict()
    state.update({f"teacher.{key}": value for key, value in built(teacher, seed=1).state_dict().items()})
    file = tmp_path / "a.pth"
    torch.save(state, file)
    if teacher == TEACHER:
        assert_loads(file, student)
    else:
        with pytest.raises(UserError, match="under no key and 'teacher', which fit equally well"):
            assert_loads(file, student)


AVERAGES: dict[str, dict[str, Any]] = {"mean": {}, "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model_state_dict": state, "epoch": 3}])
def test_averaged_models(tmp_path: Path, kind: str, wrap: Any) -> None:
    averaged = AveragedModel(built(), **AVERAGES[kind], use_buffers=True)
    averaged.update_parameters(built(seed=1))
    averaged.update_parameters(built(seed=2))
    torch.save(wrap(averaged.state_dict()), tmp_path / "a.pth")
    content = read(tmp_path / "a.pth")
    assert content.layout.endswith("without the prefix 'module.'")
    assert content.state.keys() == averaged.module.state_dict().keys()
    assert_loads(tmp_path / "a.pth", averaged.module)
    torch.save({f"model.{key}": value for key, value in averaged.state_dict().items()}, tmp_path / "b.pth")
    assert_loads(tmp_path / "b.pth", averaged.module)


def test_an_average_beside_its_network(tmp_path: Path) -> None:
    student = built()
    averaged = AveragedModel(built(seed=1))
    file = checkpoint(tmp_path / "a.ckpt", Module(student=student, ema=averaged))
    with pytest.raises(UserError, match=re.escape("under 'ema.module' and 'student', which fit equally well")):
        assert_loads(file, student)
    assert_loads(file, averaged.module, "ema.module")
    assert_loads(file, averaged.module, "ema")


def test_a_part_is_loaded_strictly(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    state = {f"backbone.{key}": value for key, value in built().state_dict().items()}
    torch.save({**state, "backbone.extra.weight": torch.ones(2), "head.weight": torch.ones(2)}, file)
    with pytest.raises(UserError) as caught:
        assert_loads(file, built())
    assert str(caught.value) == (
        f"{file}: does not hold the weights of {STUDENT}: under 'backbone' 'extra.weight' is not the network's; "
        f"these look like the weights of {STUDENT} (under 'backbone')"
    )
    torch.save({key: value for key, value in state.items() if "fc." not in key}, file)
    with pytest.raises(UserError, match=r"under 'backbone' it lacks 'fc\.weight'"):
        assert_loads(file, built())
    torch.save(state, file)
    with pytest.raises(UserError, match="holds cifar_resnet8x4 for 7 classes, and 3 are wanted"):
        load_into(built(classes=3), read(file).state, file, STUDENT)


def test_weights_of_other_networks_are_named_with_their_keys(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.ckpt", Module(teacher=built("cifar_resnet14"), student=built("cifar_resnet8")))
    with pytest.raises(UserError) as caught:
        load_into(create("cifar_vgg8", 7), read(file).state, file, "cifar_vgg8")
    assert str(caught.value).endswith(
        "; these look like the weights of cifar_resnet8 (under 'student') and cifar_resnet14 (under 'teacher')"
    )
    line = convert(file, tmp_path / "a.safetensors", None, None)
    assert ", most likely of cifar_resnet8 (under 'student') and cifar_resnet14 (under 'teacher'), from" in line
    assert closest_networks(built("cifar_wrn_16_2").state_dict()) == "cifar_wrn_16_2"


def test_conversion_takes_the_part_that_fits(tmp_path: Path) -> None:
    student = built()
    file = checkpoint(tmp_path / "a.ckpt", Module(teacher=built(TEACHER), student=student))
    line = convert(file, tmp_path / "a.safetensors", STUDENT, None)
    assert ", from 'state_dict' in a torch file, under 'student'; sha256 " in line
    assert read(tmp_path / "a.safetensors").state.keys() == student.state_dict().keys()
    assert_loads(tmp_path / "a.safetensors", student)


class Wrapper(nn.Module):
    """A user's network whose keys all start with a prefix that wrappers have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(7))
        self(torch.zeros(2, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_network_whose_own_keys_have_a_wrappers_prefix(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    source, network = Wrapper(), Wrapper()
    file = tmp_path / "a.pth"
    torch.save({prefix + key: value for key, value in source.state_dict().items()}, file)
    load_into(network, read(file).state, file, "wrapper")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items())


def test_keys_of_very_many_names_take_no_time(tmp_path: Path) -> None:
    state = built().state_dict() | {"a." * 200_000 + str(index): torch.ones(1) for index in range(20)}
    file = tmp_path / "a.pth"
    with pytest.raises(UserError, match="is not the network's") as caught:
        load_into(built(), state, file, STUDENT)
    assert len(str(caught.value)) < 500
