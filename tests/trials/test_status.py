"""The commands status and verify."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

from kd_bench.config.load import read_recipe
from kd_bench.plan import plan
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.integrity import check_trial
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from kd_bench.trials.status import summary, trial_statuses
from tests.launch.test_end_to_end import run
from tests.trials.folders import finish

RECIPE = {
    "name": "small",
    "dataset": {"name": "digits", "test_images": 100},
    "epochs": 2,
    "batch_size": 100,
    "trials": 2,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}},
}


def planned(content: dict = RECIPE):
    return plan(read_recipe(content), "small")


def test_every_state(tmp_path: Path) -> None:
    cells = planned()
    folders = [TrialFolder(tmp_path / "small" / cell.trial_id) for cell in cells]
    finish(folders[0].path, cells[0].trial)
    folders[1].create(cells[1].trial)
    folders[1].finish({"status": "failed", "reason": "the loss was no longer finite in epoch 1, step 3"})
    folders[2].create(cells[2].trial)
    folders[2].write_checkpoint(1, b"state")
    lease = acquire_lease(folders[2].path, LeaseMonitor())
    assert lease is not None
    folders[3].create(cells[3].trial)
    folders[3].write_failure("the worker was killed by signal 9")
    statuses = {status.trial: status for status in trial_statuses(cells, tmp_path, "small")}
    assert len(statuses) == 5
    states = [statuses[cell.trial_id] for cell in cells]
    assert [status.state for status in states] == ["done", "failed", "running", "failed"]
    assert states[0].detail == "50.00 %"
    assert "no longer finite" in states[1].detail
    assert f"process {os.getpid()} since 20" in states[2].detail
    assert "epoch 1 of 2 done" in states[2].detail
    assert states[3].detail == "the worker was killed by signal 9; the next run tries again"
    assert summary(statuses.values()) == "5 trainings: 1 done, 1 running, 1 waiting, 2 failed"
    lease.release(finished=False)
    assert trial_statuses(cells, tmp_path, "small")[-2].state == "waiting"


def write_foreign_lease(folder: TrialFolder, seconds_ago: float) -> None:
    """Writes a lease as another machine would."""
    content = {"host": "other", "here": "other/boot", "pid": 1, "born": 0.0, "token": "x", "released": False}
    file = folder.path / "lease.000001"
    file.write_text(json.dumps(content))
    beat = time.time() - seconds_ago
    os.utime(file, (beat, beat))


@pytest.mark.parametrize(("seconds_ago", "state"), [(10.0, "running"), (1000.0, "waiting"), (-5000.0, "running")])
def test_heartbeats_of_another_machine(tmp_path: Path, seconds_ago: float, state: str) -> None:
    (cell, *_) = planned()
    folder = TrialFolder(tmp_path / "small" / cell.trial_id)
    folder.create(cell.trial)
    write_foreign_lease(folder, seconds_ago)
    assert [status.state for status in trial_statuses([cell], tmp_path, "small")] == [state]


def test_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    nothing = run("status", str(path), "--out", str(tmp_path))
    assert nothing.returncode == 1
    assert nothing.stdout.splitlines()[-1] == "small: 5 trainings: 5 waiting"
    (cell, *_) = cells = planned()
    for planned_trial in cells:
        trial = planned_trial.trial
        finish(tmp_path / "small" / trial.id, trial)
        if trial.teacher:
            finish(tmp_path / "teachers" / trial.teacher.id, trial.teacher)
    done = run("status", str(path), "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "small: 5 trainings: 5 done\n")
    whole = run("verify", str(tmp_path))
    assert whole.returncode == 0
    assert whole.stdout == f"{tmp_path}: 5 trials: 5 done; no faults found\n"
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert run("verify", str(moved / "small")).stdout == f"{moved / 'small'}: 4 trials: 4 done; no faults found\n"
    (moved / "small" / cell.trial_id / "student.safetensors").write_bytes(b"other")
    spoiled = run("verify", str(moved))
    assert spoiled.returncode == 1
    assert "student.safetensors: is not what was written" in spoiled.stdout
    assert "Traceback" not in spoiled.stderr
    assert run("verify", str(tmp_path / "no")).returncode == 2


def test_results_of_two_machines_are_merged_by_copying(tmp_path: Path) -> None:
    cells = planned(RECIPE | {"methods": {"none": {}}})
    for cell, machine in zip(cells, ("one", "other"), strict=True):
        finish(tmp_path / machine / "small" / cell.trial_id, cell.trial)
    shutil.copytree(tmp_path / "other", tmp_path / "one", dirs_exist_ok=True)
    assert [status.state for status in trial_statuses(cells, tmp_path / "one", "small")] == ["done", "done"]
    assert all(check_trial(tmp_path / "one" / "small" / cell.trial_id).faults == () for cell in cells)


def test_faults(tmp_path: Path) -> None:
    (cell, *_) = planned()
    folder = TrialFolder(tmp_path / cell.trial_id)
    finish(folder.path, cell.trial)
    assert check_trial(folder.path).faults == ()
    folder.write_metrics([{"epoch": 1, "top1": 50.0}])
    assert "does not have one row for each of 2 epochs" in check_trial(folder.path).faults[0]
    folder.write_metrics([{"epoch": 1, "top1": 50.0}, {"epoch": 2, "top1": 51.0}])
    assert "ends with 51.0 %, but result.json says 50.0 %" in check_trial(folder.path).faults[0]
    finish(folder.path, cell.trial)
    folder.weights.unlink()
    assert "is missing" in check_trial(folder.path).faults[0]
    assert check_trial(folder.path, needs_weights=False).faults == ()
    (folder.path / "trial.json").write_text(
        (folder.path / "trial.json").read_text().replace('"epochs": 2', '"epochs": 3')
    )
    assert check_trial(folder.path).status == "changed by hand"


@pytest.mark.slow
def test_accuracy_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"trials": 1, "methods": {"none": {}}, "epochs": 1}))
    done = run("run", str(path), "--out", str(tmp_path / "out"), "--only", "method=none")
    assert done.returncode == 0, done.stderr
    again = run("verify", str(tmp_path / "out"), "--accuracy")
    assert again.returncode == 0, again.stdout
    (file,) = (tmp_path / "out").glob("small/*/result.json")
    result = json.loads(file.read_text())
    (metrics,) = (tmp_path / "out").glob("small/*/metrics.csv")
    metrics.write_text(metrics.read_text().replace(str(result["top1_last"]), "99.5"))
    file.write_text(json.dumps(result | {"top1_last": 99.5, "top1_best": 99.5}))
    wrong = run("verify", str(tmp_path / "out"), "--accuracy")
    assert wrong.returncode == 1
    assert "but result.json says 99.50 %" in wrong.stdout
