"""Loggers: what they are told, over kills and resumes, and that none of them can end a training."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from kd_bench.cli.main import app
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.loggers import Loggers
from kd_bench.utils.errors import UserError
from tests.training.parts import trial

TRIAL = trial("kd")
ROWS = [{"epoch": epoch, "top1": 10.0 * epoch, "seconds": 1.5} for epoch in range(1, 5)]
DONE = {"status": "done", "top1_last": 40.0, "reason": None}


class Run:
    """What the fake of wandb keeps of a run; a run that is begun again goes on behind its last step."""

    def __init__(self, given: dict, before: Run | None) -> None:
        self.given = given
        self.steps = dict(before.steps) if before else {}
        self.starting_step = max(self.steps, default=-1) + 1
        self.summary: dict = {}
        self.code: int | None = None

    def log(self, row: dict, step: int) -> None:
        if step < max(self.steps, default=0):
            raise ValueError("steps must increase")
        self.steps[step] = row

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    runs: list[Run] = []

    def init(**given) -> Run:
        json.dumps(given["config"])
        before = [one for one in runs if one.given["id"] == given["id"]]
        assert not before or given["resume"] == "allow"
        runs.append(Run(given, before[-1] if before else None))
        return runs[-1]

    fake = SimpleNamespace(init=init, Settings=dict, runs=runs)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def folder(tmp_path) -> TrialFolder:
    found = TrialFolder(tmp_path / "table6" / TRIAL.id)
    found.begin(TRIAL)
    return found


def test_a_resumed_trial_goes_on_with_its_run_of_wandb(wandb, folder):
    first = Loggers(["wandb"], folder, pytest.fail)
    first.begin(TRIAL, [])
    for row in ROWS[:2]:
        first.row(row)
    again = Loggers(["wandb"], folder, pytest.fail)  # after a kill, with an epoch that was not logged any more
    again.begin(TRIAL, ROWS[:3])
    again.row(ROWS[3])
    again.close(DONE)
    one, two = wandb.runs
    assert one.given["id"] == two.given["id"]
    assert list(two.steps.values()) == ROWS
    assert (two.code, two.summary) == (0, {"status": "done", "top1_last": 40.0})
    assert (two.given["group"], two.given["project"]) == ("table6", "kd-bench")
    assert two.given["config"] == TRIAL.settings()

    anew = Loggers(["wandb"], folder, pytest.fail)  # --retry-failed
    anew.begin(TRIAL, [])
    anew.close({"status": "failed", "reason": "the loss is not finite"})
    assert wandb.runs[-1].given["id"] != one.given["id"]
    assert wandb.runs[-1].code == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_logger_that_fails_is_told_once_and_left_out(wandb, folder, monkeypatch, fails):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host\nand more of it")

    monkeypatch.setattr(wandb if fails == "init" else Run, fails, refuse)
    told: list[str] = []
    loggers = Loggers(["wandb"], folder, told.append)
    loggers.begin(TRIAL, [])
    for row in ROWS:
        loggers.row(row)
    loggers.close(DONE)
    assert told == [f"--wandb: {TRIAL.id} goes on without it (no route to host)"]


def test_tensorboard_shows_every_epoch_once_whatever_was_written_before(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Loggers(["tensorboard"], folder, pytest.fail)
    first.begin(TRIAL, [])
    for row in ROWS[:3]:
        first.row(row | {"top1": 1.0})
    again = Loggers(["tensorboard"], folder, pytest.fail)  # from the checkpoint before the last
    again.begin(TRIAL, ROWS[:2])
    for row in ROWS[2:]:
        again.row(row)
    again.close(DONE)
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("top1")] == [(row["epoch"], row["top1"]) for row in ROWS]


def test_a_logger_whose_package_is_missing_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--wandb needs a package more.*pip install 'kd-bench\[wandb\]'"):
        app(["run", "demo", "--wandb", "--out", str(tmp_path)], standalone_mode=False)
    assert not list(tmp_path.iterdir())
