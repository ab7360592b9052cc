"""``kd-bench table`` and ``kd-bench status`` without a recipe: all results of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.utils.errors import UserError

MEASURED = Path(__file__).parents[2] / "results" / "measured"


def invoke(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments), standalone_mode=False, catch_exceptions=False).output


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results of two recipes."""
    for name in ("demo", "robust_digits", "teachers"):
        shutil.copytree(MEASURED / name, tmp_path / name)
    return tmp_path


def test_the_tables_of_all_results(out: Path) -> None:
    text = invoke("table", "--out", str(out), "--format", "markdown")
    assert text.startswith("## demo\n\n") and text.count("\n\n## robust_digits\n\n") == 1
    for name in ("demo", "robustness/digits"):
        assert invoke("table", name, "--out", str(out), "--format", "markdown") in text
    shutil.rmtree(out / "robust_digits")
    alone = invoke("table", "--out", str(out), "--format", "csv")
    assert alone == invoke("table", "demo", "--out", str(out), "--format", "csv")


def test_the_name_of_a_folder_stands_for_the_recipe_that_plans_its_trials(out: Path) -> None:
    for command in ("table", "status"):
        by_recipe, by_folder = (
            invoke(command, name, "--out", str(out)) for name in ("robustness/digits", "robust_digits")
        )
        assert by_folder == by_recipe


def test_what_needs_a_recipe(out: Path) -> None:
    for arguments, message in (
        (["--format", "csv"], "--format csv: one table only; name one of demo, robust_digits, which"),
        (["--only", "method=kd"], "--only: name the recipe that is changed or selected from"),
        (["--epochs", "2"], r"--set \(or an option that is short for it\): name the recipe"),
    ):
        with pytest.raises(UserError, match=message):
            invoke("table", "--out", str(out), *arguments)
    with pytest.raises(UserError, match="there are no trials in"):
        invoke("table", "--out", str(MEASURED / "demo"))


def test_verify_names_what_is_missing(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "gone", "there is no such folder"), (tmp_path, "there are no trials in this")):
        with pytest.raises(UserError, match=f"{folder}: {message}"):
            invoke("verify", str(folder))


def test_the_status_of_all_results(out: Path) -> None:
    lines = invoke("status", "--out", str(out)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["demo", "robust_digits"]
    assert lines[0] == "demo: 26 trainings: 26 waiting"  # the weights are not kept
    failed = next(path for path in (out / "demo").iterdir() if path.is_dir())
    (failed / "result.json").write_text(json.dumps({"status": "failed", "reason": "the loss was not finite"}))
    lines = invoke("status", "--out", str(out)).splitlines()
    assert lines[0].startswith("failed") and lines[0].endswith("the loss was not finite")
    assert lines[1] == "demo: 26 trainings: 25 waiting, 1 failed"
