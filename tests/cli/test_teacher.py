"""``kd-bench teacher``: settings are those of the teacher's training, and converted files are called what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kd_bench import api
from kd_bench.cli.main import app
from kd_bench.models import create, weights
from kd_bench.utils.errors import UserError


def invoke(*arguments: object) -> str:
    return CliRunner().invoke(app, list(map(str, arguments)), standalone_mode=False, catch_exceptions=False).output


def planned(network: str, dataset: str, *overrides: str) -> str:
    (cell,) = api.plan_teachers(network, dataset, trials=1, overrides=overrides).planned
    return cell.trial_id


@pytest.mark.parametrize(
    ("network", "dataset", "overrides", "trial"),
    [
        ("resnet20", "digits", (), "37f4204c285885b0"),
        ("resnet20", "digits", ("epochs=2",), "1ec25ce528ff3e2e"),
        ("resnet20", "digits", ("teacher_training.epochs=2",), "1ec25ce528ff3e2e"),
        # The more specific setting counts.
        ("resnet20", "digits", ("teacher_training.epochs=2", "epochs=3"), "1ec25ce528ff3e2e"),
        ("resnet20", "digits", ("epochs=3", "teachers.resnet20.epochs=2"), "1ec25ce528ff3e2e"),
        # The teacher of results/measured.
        ("resnet20", "cifar100", ("epochs=24", "optimizer.lr=0.1", "schedule.name=cosine"), "27f462738068cb93"),
    ],
)
def test_settings_are_those_of_the_teacher(network: str, dataset: str, overrides: tuple[str, ...], trial: str) -> None:
    assert planned(network, dataset, *overrides) == trial


def test_entries_of_a_list_can_be_set() -> None:
    milestones = "schedule.milestones=[100, 180, 210]"
    changed = planned("resnet20", "cifar100", milestones, "schedule.milestones.0=90")
    assert changed == planned("resnet20", "cifar100", "schedule.milestones=[90, 180, 210]")
    assert changed != planned("resnet20", "cifar100", milestones)


def test_recipes_find_the_teacher_that_was_trained() -> None:
    of_recipe = api.plan("demo", overrides=["teacher_training.epochs=2", "teacher_training.optimizer.lr=0.1"])
    assert {cell.teacher_id for cell in of_recipe.planned} == {
        planned("resnet14", "digits", "epochs=2", "optimizer.lr=0.1")
    }


def test_verify_names_the_command_that_trains(tmp_path: Path) -> None:
    teacher = ("teacher", "verify", "resnet20", "--dataset", "digits")
    advice = (
        "train it with: kd-bench teacher train cifar_resnet20 --dataset digits --set 'description=a b' --set epochs=2"
    )
    for options in (("--epochs", "2"), ("--set", "epochs=2")):
        with pytest.raises(UserError) as caught:
            invoke(*teacher, "--set", "description=a b", *options, "--out", tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}/teachers/1ec25ce528ff3e2e: ")
        assert str(caught.value).endswith(f"{advice} --out {tmp_path}")


def test_a_setting_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--epochs 2: --set epochs=3 sets epochs, too; leave one of them out"):
        invoke("teacher", "train", "resnet20", "--epochs", "2", "--set", "epochs=3", "--out", tmp_path)


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("teacher_training.seed=3", "; for the networks of its pairs write: --set 'seeds=[3]'"),
        ("teacher_training.seeds=2", "; for the networks of its pairs write: --set trials=2"),
        ("teacher_training.seeds=[2, 5]", "; for the networks of its pairs write: --set 'seeds=[2, 5]'"),
        ("teacher_training.optimizer.lr=0.1", "; for the networks of its pairs write: --set optimizer.lr=0.1"),
        ("teacher_training={epochs: 2}", ""),
    ],
)
def test_settings_of_teachers_are_refused_where_there_are_none(override: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        invoke("teacher", "train", "--set", override, "--out", tmp_path)
    sentence = "changes nothing, because no pair of cifar100/teachers has a teacher"
    assert str(caught.value) == f"--set {override}: {sentence}{advice}"


def test_converted_weights_have_the_name_of_their_layout(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save(create("cifar_resnet8", 10).state_dict(), source)
    content = source.read_bytes()
    for other in (source, tmp_path / "b.pth", tmp_path / "b"):
        with pytest.raises(UserError, match=f"{other}: should end in .safetensors"):
            invoke("teacher", "convert", source, other)
    first = invoke("teacher", "convert", source, target)
    assert first.startswith(f"{target}: ") and "replaced" not in first
    again = invoke("teacher", "convert", source, target)
    assert again == first.replace("\n", "; replaced the file that was there\n")
    with pytest.raises(UserError, match=f"{target}: is the file that is read, so another one has to be written"):
        invoke("teacher", "convert", target, target)
    assert source.read_bytes() == content and set(weights.read(target).state) == set(weights.read(source).state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]
