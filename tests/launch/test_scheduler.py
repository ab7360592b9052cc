"""What the scheduler makes of the ends of workers, and of folders that change while it runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_bench.config.trial import PlannedTrial
from kd_bench.launch import scheduler
from kd_bench.launch.cluster_executor import ClusterExecutor, RemoteJob
from kd_bench.launch.options import RunOptions
from kd_bench.launch.progress_display import ProgressDisplay
from kd_bench.launch.scheduler import RunOutcome, Scheduler
from tests.training.parts import trial


class _Jobs(ClusterExecutor):
    """Jobs that end with these events and exit codes, one after the other."""

    def __init__(self, *ends: tuple[list[dict[str, Any]], int]) -> None:
        super().__init__(1, 0)
        self.ends = list(ends)

    def submit(self, work: RemoteJob) -> Any:
        return work

    def exit_code(self, job: RemoteJob) -> int | str | None:
        events, code = self.ends.pop(0)
        with open(job._events, "a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        return code


def _run(jobs: _Jobs, out: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[RunOutcome, str]:
    monkeypatch.setattr(scheduler, "_make_executor", lambda *_: jobs)
    monkeypatch.setattr(scheduler, "RETRY_SECONDS", 0.0)
    output = io.StringIO()
    run = Scheduler("r", RunOptions(out=out), ProgressDisplay("r", Console(file=output, width=400)))
    trials = [PlannedTrial(trial(name), name, None) for name in names or ("none",)]
    return run.run(trials), output.getvalue()


def test_a_job_whose_time_is_up_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job trains a part of an epoch, and SLURM ends it; that may happen more often than jobs may fail."""
    left = ([{"event": "left", "trials": [trial("none").id]}], -15)
    finished = {"event": "finished", "trial": trial("none").id, "status": "failed", "reason": "diverged", "top1": None}
    jobs = _Jobs(*[left] * 8, ([finished], 0), *[([], 0)] * 3)
    outcome, output = _run(jobs, tmp_path, monkeypatch)
    assert outcome.failed == {trial("none").id: "diverged"}
    assert "started again" not in output


def test_events_of_another_job_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of an earlier command, which still runs, may write to the same file about trials of its own."""
    other = {"event": "epoch", "trial": "0" * 16, "epoch": 1, "top1": 1.0}
    error = {"event": "error", "reason": "no luck", "fault": "settings"}
    outcome, _ = _run(_Jobs(([other, error], 1)), tmp_path, monkeypatch)
    assert outcome.failed[trial("none").id].startswith("no luck (log: ")


def test_a_teacher_that_is_removed_while_students_wait_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students would wait for ever. A teacher that does not stay is given up."""
    teacher = trial("kd").teacher
    assert teacher is not None
    gone = iter(["done", *["missing"] * 10])
    status = scheduler.TrialFolder.status
    monkeypatch.setattr(
        scheduler.TrialFolder, "status", lambda self: next(gone) if self.id == teacher.id else status(self)
    )
    error = {"event": "error", "reason": "no luck", "fault": "settings"}
    outcome, output = _run(_Jobs(([error], 1)), tmp_path, monkeypatch, "kd")
    assert "the teacher cifar_resnet14 was removed from" in output
    assert "it is made again" in output
    assert outcome.failed[trial("kd").id] == "its teacher cifar_resnet14 could not be trained"
    assert outcome.failed[teacher.id].startswith("no luck")


def test_a_trial_that_is_damaged_during_the_run_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaging(_Jobs):
        def exit_code(self, job: RemoteJob) -> int | str | None:
            folder = tmp_path / "r" / trial("none").id
            folder.mkdir()
            (folder / "trial.json").write_text("{}")
            return super().exit_code(job)

    outcome, output = _run(Damaging(([], -9)), tmp_path, monkeypatch)
    assert "r: left out: " in output
    assert "trial.json" in outcome.failed[trial("none").id]


def test_a_cohort_that_the_system_kills_twice_continues_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system kills processes when its memory is full. A smaller cohort may fit; a single trial is tried again."""
    status = scheduler.TrialFolder.status
    teacher = trial("kd").teacher
    monkeypatch.setattr(scheduler.TrialFolder, "status", lambda self: "done" if self.id == teacher.id else status(self))
    jobs = _Jobs(*[([], -9)] * 2, *[([], -9)] * 6)
    outcome, output = _run(jobs, tmp_path, monkeypatch, "kd", "dkd")
    assert output.count("its 2 trials continue in two processes") == 1
    assert output.count("time 1 of 2") == 3  # of both trials, and of each alone
    assert output.count("time 2 of 2") == 2
    assert not jobs.ends
    assert set(outcome.failed) == {trial("kd").id, trial("dkd").id}
