"""The results folder: whether it can be read, where a trial is in it, and why a recipe has no results there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kd_bench import api
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.missing_results import explain_missing
from kd_bench.trials.results_folder import check_results_folder, find_trial, folder_problem, is_trial_id, out_option
from kd_bench.utils.errors import UserError
from tests.trials.folders import finish


def test_what_is_wrong_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert folder_problem(tmp_path) is None
    assert folder_problem(file) == "is a file, not a folder"
    for missing in (tmp_path / "nowhere", tmp_path / "gone", file / "below"):
        assert folder_problem(missing) == "there is no such folder"
        with pytest.raises(UserError, match=f"--out: there is no folder {missing}; kd-bench run makes one"):
            check_results_folder(missing)
        check_results_folder(missing, must_exist=False)
    for must_exist in (True, False):
        with pytest.raises(UserError, match=f"--out: {file} is a file, not a folder"):
            check_results_folder(file, must_exist)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert (folder_problem(tmp_path / "loop") or "").startswith("cannot be read: ")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"--out: {tmp_path} cannot be read: Permission denied"):
        check_results_folder(tmp_path)


def test_a_trial_is_found_by_its_id(tmp_path: Path) -> None:
    planned = api.plan("demo", only=["seed=0", "method=kd"]).planned
    trial, teacher = planned[0].trial, planned[0].trial.teacher
    assert teacher is not None and is_trial_id(trial.id) and not is_trial_id("demo")
    assert find_trial(trial.id, tmp_path) is None
    (tmp_path / "a" / trial.id).mkdir(parents=True)  # of a run that was stopped
    assert find_trial(trial.id, tmp_path) == tmp_path / "a" / trial.id
    finished = finish(tmp_path / "demo" / trial.id, trial)
    finish(tmp_path / "z" / trial.id, trial)
    (tmp_path / "z" / trial.id / "student.safetensors").unlink()
    assert find_trial(trial.id, tmp_path) == finished
    of_teacher = finish(tmp_path / TEACHERS / teacher.id, teacher)
    assert find_trial(teacher.id, tmp_path) == of_teacher
    assert find_trial("*", tmp_path) is None


def explained(out: Path, **options: list[str]) -> str | None:
    part = api.plan("demo", **options)
    return explain_missing("demo", part.recipe, part.context, part.planned, out)


def test_why_a_recipe_has_no_results(tmp_path: Path) -> None:
    out = tmp_path / "my runs"
    assert explained(out) == f"no trial of demo is in {out} yet; train with: kd-bench run demo --out '{out}'"
    assert out_option(Path("runs")) == ""
    short = api.plan("demo", only=["method=kd"], overrides=["epochs=2"], trials=2).planned
    for cell in short:
        finish(out / "demo" / cell.trial_id, cell.trial)
    reason = "epochs 2 instead of 15"
    sentence = (
        f"{out}/demo has 2 finished trials that the recipe does not plan ({{}}); repeat the options of the run, or "
        f"see all results: kd-bench table --out '{out}'"
    )
    assert explained(out) == sentence.format(reason)
    assert explained(out, overrides=["epochs=2"]) is None  # it has some results
    assert explained(out, only=["method=dkd"]) == sentence.format(reason)
    # What --only leaves out is planned all the same.
    assert explained(out, only=["method=dkd"], overrides=["epochs=2"]) is None
    other = api.plan("demo", methods=["dist"], only=["method=dist", "seed=0"]).planned[0]
    finish(out / "demo" / other.trial_id, other.trial)
    assert explained(out) == sentence.format(f"e.g. {reason}").replace("2 finished", "3 finished")
    for cell in short:
        (out / "demo" / cell.trial_id / "result.json").unlink()
    assert explained(out) == sentence.format("method dist").replace("2 finished trials", "1 finished trial")
