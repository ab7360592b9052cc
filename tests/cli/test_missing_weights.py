"""Commands that read results when weights are gone: the file of a given teacher, or those of the students."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.reader import WEIGHTS
from kd_bench.trials.recipe_file import write_recipe
from tests.estimate.few import RECIPE
from tests.trials.folders import finish

NAME = "compare-few"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), standalone_mode=False)


@pytest.fixture
def planned(tmp_path: Path) -> list[PlannedTrial]:
    """A comparison of two seeds whose first one was trained, and whose teacher's file is no longer there."""
    file, out = tmp_path / "mine.pth", tmp_path / "out"
    file.write_bytes(b"weights of some kind")
    recipe = read_recipe(RECIPE | {"name": NAME, "baseline": "none", "teachers": {"resnet14": {"weights": str(file)}}})
    cells = plan(recipe, NAME)
    write_recipe(recipe, out, cells)
    for cell in cells:
        if cell.seed == 0:
            finish(out / NAME / cell.trial_id, cell.trial)
        if cell.taught_by is not None:
            finish(out / TEACHERS / cell.taught_by.id, cell.taught_by)
    file.unlink()
    return cells


def test_status_and_table_without_a_recipe_are_those_of_the_kept_recipe(
    planned: list[PlannedTrial], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments in (("--out", out), (NAME, "--out", out)):
        status = invoke("status", *arguments)
        assert status.output.endswith(f"{NAME}: 7 trainings: 4 done, 3 waiting\n")
        assert isinstance(status.exception, SystemExit) and status.exit_code == 1
        table = invoke("table", *arguments, "--format", "plain")
        assert table.exception is None
        assert "difference to the student alone" in table.output and "(1/2)" in table.output


def test_an_estimate_does_not_count_what_is_finished(planned: list[PlannedTrial], tmp_path: Path) -> None:
    arguments = ("estimate", NAME, "--steps", "0", "--cards", "t4")
    estimate = invoke(*arguments, "--out", tmp_path / "out")
    assert estimate.exception is None
    text = " ".join(estimate.output.split())
    assert "compare-few: to train: 3 trials in 2 cohorts; 3 trials finished before." in text
    assert "there is no file" in text and "mine.pth" in text
    recipe = shutil.copy(tmp_path / "out" / NAME / "recipe.yaml", tmp_path / "moved.yaml")
    elsewhere = invoke("estimate", recipe, *arguments[2:], "--out", tmp_path / "other")
    assert "to train: 6 trials in 4 cohorts; to read: 1 teacher" in " ".join(elsewhere.output.split())


def test_an_estimate_of_results_that_were_kept_without_weights(planned: list[PlannedTrial], tmp_path: Path) -> None:
    for weights in (tmp_path / "out" / NAME).glob(f"*/{WEIGHTS}"):
        weights.unlink()
    estimate = invoke("estimate", NAME, "--steps", "0", "--cards", "t4", "--out", tmp_path / "out")
    assert estimate.exception is None
    assert "compare-few: to train: 6 trials in 4 cohorts." in estimate.output
    table = invoke("estimate", NAME, "--steps", "0", "--cards", "t4", "--format", "csv", "--out", tmp_path / "out")
    rows = list(csv.DictReader(line for line in table.output.splitlines() if not line.startswith("estimate: ")))
    assert [(row["rows"], row["cohorts"], row["epochs"]) for row in rows] == [("none", "2", "2"), ("kd dkd", "2", "2")]
    assert all(float(row["hours"]) > 0 for row in rows)
