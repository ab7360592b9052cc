"""``pretrained`` and ``trainable`` of a teacher, from the recipe to its trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.models import pretrained, registry
from kd_bench.models.initial_weights import create_from_file
from kd_bench.plan import plan, plan_teachers
from kd_bench.trials.plan_without_weights import UNKNOWN_HASH, plan_with_placeholders
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.files import sha256

SIZE = {"size": 160, "normalise": "network"}
DINO = "vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.pth"
    path.write_bytes(b"any")
    return path


def planned(teachers: dict[str, Any], teacher: str = "test_vit", **settings: Any) -> list[PlannedTrial]:
    recipe = {
        "name": "r",
        "dataset": "digits",
        "pairs": [{"teacher": teacher, "student": "resnet8"}],
        "methods": {"kd": {}},
        "trials": 1,
        "teachers": teachers,
        **settings,
    }
    return plan(read_recipe(recipe), "r.yaml")


def test_the_file_and_the_part_are_in_the_teachers_identity(file: Path) -> None:
    (cell,) = planned({"test_vit": {"pretrained": str(file), "trainable": "head", "input": SIZE}})
    teacher = cell.taught_by
    assert isinstance(teacher, Trial)
    assert (teacher.pretrained, teacher.trainable) == (sha256(file), "head")
    assert teacher.input.size == 160
    assert cell.weights == file
    assert cell.trial.teacher == teacher
    assert cell.trial.input.size is None  # the student keeps the images' size
    (general,) = planned({"test_vit": {"pretrained": str(file), "input": SIZE}}, teacher_training={"trainable": "head"})
    assert general.trial_id == cell.trial_id
    (other,) = planned({"test_vit": {"pretrained": str(file), "trainable": "last_block", "input": SIZE}})
    assert other.teacher_id != cell.teacher_id
    file.write_bytes(b"other")
    (changed,) = planned({"test_vit": {"pretrained": str(file), "trainable": "head", "input": SIZE}})
    assert changed.teacher_id != cell.teacher_id


def test_several_seeds_of_a_teacher_start_from_one_file(file: Path) -> None:
    settings = {"pretrained": str(file), "trainable": "head", "input": SIZE, "seeds": 2}
    cells = planned({"test_vit": settings})
    assert [cell.weights for cell in cells] == [file, file]
    assert len({cell.teacher_id for cell in cells}) == 2
    recipe = read_recipe(
        {
            "name": "teachers",
            "dataset": "digits",
            "pairs": [{"teacher": "test_vit", "student": "test_vit"}],
            "methods": {"none": {}},
            "teachers": {"test_vit": settings},
            "trials": 1,
        }
    )
    trained = plan_teachers(recipe, "test_vit", "teacher test_vit")
    assert [cell.trial_id for cell in trained] == [cell.teacher_id for cell in cells]
    assert [cell.weights for cell in trained] == [file, file]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "head"}, "trainable: head leaves other weights as they are, so pretrained must name them"),
        (
            {"trainable": "heed", "pretrained": "FILE"},
            "'heed' is none of 'all', 'head' or 'last_block'; did you mean 'head'",
        ),
        ({"pretrained": ""}, "pretrained: should be text that is not empty"),
        ({"pretrained": "FILE"}, r"input is missing: .*; write input: \{size: 160, normalise: network\}"),
        ({"pretrained": "FILE", "weights": "FILE"}, "weights and pretrained exclude each other"),
        ({"pretrained": "no.pth", "input": SIZE}, r"pretrained: there is no file no\.pth"),
        (
            {"pretrained": "timm", "input": SIZE},
            "no network with pretrained weights in timm is called 'test_vit'; did you mean 'test_vit.r160",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence(file: Path, settings: dict[str, Any], message: str) -> None:
    settings = {key: str(file) if value == "FILE" else value for key, value in settings.items()}
    with pytest.raises(UserError, match=message):
        planned({"test_vit": settings})


def test_students_have_no_such_settings(file: Path) -> None:
    with pytest.raises(UserError, match="pretrained: no such key"):
        planned({}, pretrained=str(file))


def test_weights_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path))
    settings = {DINO: {"pretrained": "timm", "trainable": "head", "input": {"size": 64, "normalise": "network"}}}
    with pytest.raises(
        UserError, match=f"get them with: kd-bench teacher fetch {DINO}; without a network, fetch model"
    ):
        planned(settings, DINO)
    path = pretrained.initial_weights_path(DINO)
    path.parent.mkdir()
    path.write_bytes(b"any")
    (cell,) = planned(settings, DINO)
    assert cell.weights == path


def test_an_estimate_does_without_the_file() -> None:
    recipe = read_recipe(
        {
            "name": "r",
            "dataset": "digits",
            "pairs": [{"teacher": "test_vit", "student": "resnet8"}],
            "methods": {"kd": {}},
            "trials": 1,
            "teacher_training": {"trainable": "head"},
            "teachers": {"test_vit": {"pretrained": "no.pth", "input": SIZE}},
        }
    )
    (cell,), (note,) = plan_with_placeholders(recipe, "r.yaml")
    assert isinstance(cell.taught_by, Trial)
    assert (cell.taught_by.pretrained, cell.taught_by.trainable) == (UNKNOWN_HASH, "head")
    assert cell.trial.teacher == cell.taught_by
    assert "there is no file no.pth" in note


def test_a_teacher_with_weights_is_not_trained(file: Path) -> None:
    (cell,) = planned({"test_vit": {"weights": str(file)}}, teacher_training={"trainable": "head"})
    assert isinstance(cell.taught_by, PretrainedTeacher)


def test_weights_of_timm_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path))
    name = "test_vit.r160_in1k"
    with monkeypatch.context() as offline:
        offline.setattr(pretrained, "_hub_reachable", lambda _: False)
        message = (
            f"cannot be reached; fetch model.safetensors of timm/{name} .* and name the file: --set teachers.{name}"
        )
        with pytest.raises(RunFailed, match=message):
            pretrained.fetch_initial_weights(name)
    torch.manual_seed(0)
    network = registry.create(name, 1000)
    monkeypatch.setattr(pretrained, "from_timm", lambda *_: network)
    fetched = CliRunner().invoke(app, ["teacher", "fetch", name])
    assert fetched.exit_code == 0, fetched.output
    path = pretrained.initial_weights(name, "timm", "r.yaml")
    assert str(path) in fetched.output
    assert f"teachers: {{{name}: {{pretrained: timm}}}}" in fetched.output
    started = create_from_file(path, name, 7, 160)
    assert torch.equal(started.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight)
    content = path.read_bytes()
    pretrained.fetch_initial_weights(name)
    assert path.read_bytes() == content
    with pytest.raises(UserError, match=r"timm is called 'test_vit\.r16'"):
        pretrained.fetch_initial_weights("test_vit.r16")
