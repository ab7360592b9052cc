"""Loggers: what they log over kills and resumes, and that none of them can end a training."""

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
    """A run of the simulated wandb. A run that is resumed continues after its last step."""

    def __init__(self, options: dict, before: Run | None) -> None:
        self.options = options
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

    def init(**options) -> Run:
        json.dumps(options["config"])
        before = [run for run in runs if run.options["id"] == options["id"]]
        assert not before or options["resume"] == "allow"
        runs.append(Run(options, before[-1] if before else None))
        return runs[-1]

    fake = SimpleNamespace(init=init, Settings=dict, runs=runs)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def folder(tmp_path) -> TrialFolder:
    folder = TrialFolder(tmp_path / "table6" / TRIAL.id)
    folder.create(TRIAL)
    return folder


def test_a_resumed_trial_goes_on_with_its_run_of_wandb(wandb, folder):
    first = Loggers(["wandb"], folder, pytest.fail)
    first.open(TRIAL, [])
    for row in ROWS[:2]:
        first.row(row)
    again = Loggers(["wandb"], folder, pytest.fail)  # after a kill, with an epoch that was not logged any more
    again.open(TRIAL, ROWS[:3])
    again.row(ROWS[3])
    again.close(DONE)
    first_run, second_run = wandb.runs
    assert first_run.options["id"] == second_run.options["id"]
    assert list(second_run.steps.values()) == ROWS
    assert (second_run.code, second_run.summary) == (0, {"status": "done", "top1_last": 40.0})
    assert (second_run.options["group"], second_run.options["project"]) == ("table6", "kd-bench")
    assert second_run.options["config"] == TRIAL.settings()

    anew = Loggers(["wandb"], folder, pytest.fail)  # --retry-failed
    anew.open(TRIAL, [])
    anew.close({"status": "failed", "reason": "the loss is not finite"})
    assert wandb.runs[-1].options["id"] != first_run.options["id"]
    assert wandb.runs[-1].code == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_logger_that_fails_is_reported_once_and_dropped(wandb, folder, monkeypatch, fails):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host\nand more of it")

    monkeypatch.setattr(wandb if fails == "init" else Run, fails, refuse)
    warnings: list[str] = []
    loggers = Loggers(["wandb"], folder, warnings.append)
    loggers.open(TRIAL, [])
    for row in ROWS:
        loggers.row(row)
    loggers.close(DONE)
    assert warnings == [f"--wandb: {TRIAL.id} continues without it (no route to host)"]


def test_tensorboard_shows_every_epoch_once_whatever_was_written_before(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Loggers(["tensorboard"], folder, pytest.fail)
    first.open(TRIAL, [])
    for row in ROWS[:3]:
        first.row(row | {"top1": 1.0})
    again = Loggers(["tensorboard"], folder, pytest.fail)  # from the checkpoint before the last
    again.open(TRIAL, ROWS[:2])
    for row in ROWS[2:]:
        again.row(row)
    again.close(DONE)
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("top1")] == [
        (row["epoch"], row["top1"]) for row in ROWS
    ]


def test_a_logger_without_its_package_is_an_error_before_training(tmp_path, monkeypatch):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--wandb needs another package.*pip install 'kd-bench\[wandb\]'"):
        app(["run", "demo", "--wandb", "--out", str(tmp_path)], standalone_mode=False)
    assert not list(tmp_path.iterdir())
