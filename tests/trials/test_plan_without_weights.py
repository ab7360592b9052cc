"""Plans of recipes whose teachers' weights are not on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.plan import plan
from kd_bench.trials.plan_without_weights import plan_from_results, plan_with_placeholders
from kd_bench.utils.errors import UserError
from tests.estimate.few import RECIPE
from tests.trials.folders import finish


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights of some kind")
    return path


def recipe_with(weights: Path) -> Recipe:
    return read_recipe(RECIPE | {"name": "few", "teachers": {"resnet14": {"weights": str(weights)}}})


def test_missing_weights_are_replaced_by_placeholders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path))
    read = read_recipe("imagenet/table8")
    with pytest.raises(UserError, match="teacher fetch"):
        plan(read, "table8")
    cells, notes = plan_with_placeholders(read, "table8")
    assert len(cells) == 12
    assert all(
        isinstance(cell.trial.teacher, PretrainedTeacher) and cell.trial.teacher == cell.taught_by for cell in cells
    )
    assert len(notes) == 1 and "teacher fetch beitv2_large" in notes[0]


def test_existing_weights_are_those_of_the_run(weights: Path) -> None:
    read = recipe_with(weights)
    cells, notes = plan_with_placeholders(read, "few")
    assert notes == []
    assert [cell.trial_id for cell in cells] == [cell.trial_id for cell in plan(read, "few")]


def test_results_are_found_without_the_weights_of_their_teacher(weights: Path, tmp_path: Path) -> None:
    recipe, out = recipe_with(weights), tmp_path / "out"
    planned = plan(recipe, "few")
    (teacher,) = {cell.taught_by.id: cell.taught_by for cell in planned if cell.taught_by}.values()
    finish(out / "teachers" / teacher.id, teacher)
    assert plan_from_results(recipe, "few", out) == planned
    weights.unlink()
    cells = plan_from_results(recipe, "few", out)
    assert [cell.trial_id for cell in cells] == [cell.trial_id for cell in planned]

    (out / "teachers" / "damaged").mkdir()
    (out / "teachers" / "damaged" / "trial.json").write_text("{")
    assert plan_from_results(recipe, "few", out) == cells
    assert isinstance(teacher, PretrainedTeacher)
    other = teacher.model_copy(update={"weights": "1" * 64})
    finish(out / "teachers" / other.id, other)
    with pytest.raises(UserError, match=f"there is no file .*mine.pth; {re.escape(str(out))}.* has several teachers"):
        plan_from_results(recipe, "few", out)
    with pytest.raises(UserError, match=r"there is no file .*mine.pth; .*elsewhere/teachers has no teacher"):
        plan_from_results(recipe, "few", tmp_path / "elsewhere")


def test_a_null_of_another_teacher_still_takes_back_the_setting_of_all_teachers(weights: Path) -> None:
    content = RECIPE | {
        "name": "few",
        "ema": 0.9,
        "pairs": [{"teacher": name, "student": "resnet8"} for name in ("resnet14", "resnet20")],
        "teacher_training": {"batch_size": 32},
        "teachers": {"resnet14": {"weights": str(weights)}, "resnet20": {"ema": None}},
    }
    with_weights = plan(read_recipe(content), "few")
    weights.unlink()
    with_placeholders, _ = plan_with_placeholders(read_recipe(content), "few")
    trained = [
        [cell.taught_by for cell in cells if cell.teacher == "cifar_resnet20"]
        for cells in (with_weights, with_placeholders)
    ]
    assert trained[0] == trained[1] != []
    assert {teacher.ema for teacher in trained[1] if isinstance(teacher, Trial)} == {None}
