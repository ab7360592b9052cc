"""Status of a recipe's trials and teachers, read from their folders. Imports nothing heavy."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from kd_bench.config.teacher_seeds import teacher_suffix, teachers_of_several_seeds
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.lease import EXPIRY, LeaseMonitor, latest_holder
from kd_bench.trials.reader import read_trial

State = Literal["done", "running", "waiting", "failed", "damaged", "changed"]


@dataclass(frozen=True)
class TrialStatus:
    """Status of a trial.

    Attributes:
        trial: Its id.
        name: Pair, label and seed.
        state: ``done``; ``running`` in a live process; ``waiting`` to be trained; ``failed``, in which case the next
            run tries again unless the loss diverged; or ``damaged``, or ``changed`` by hand, which no run touches.
        detail: The accuracy, the process and its epoch, or the reason of the failure or damage.
    """

    trial: str
    name: str
    state: State
    detail: str


def trial_statuses(planned: Sequence[PlannedTrial], out: Path, recipe: str) -> list[TrialStatus]:
    """Returns the status of each teacher and then of each trial of a recipe, from the results folder ``out``."""
    now = _file_system_time(out / recipe)
    several = teachers_of_several_seeds(cell.trial for cell in planned)
    rows: dict[str, tuple[Path, str, Trial | PretrainedTeacher]] = {}
    for cell in planned:
        if (teacher := cell.trial.teacher) is not None:
            seed = f"seed {teacher.seed}" if isinstance(teacher, Trial) else "weights from a file"
            rows[teacher.id] = (out / TEACHERS / teacher.id, f"teacher {teacher.model}, {seed}", teacher)
    for cell in planned:
        teacher_name = f"{cell.teacher}{teacher_suffix(cell.trial, several)}"
        pair = f"{teacher_name} -> {cell.student}" if cell.taught_by else cell.student
        rows[cell.trial_id] = (out / recipe / cell.trial_id, f"{pair}, {cell.label}, seed {cell.seed}", cell.trial)
    monitor = LeaseMonitor()
    return [TrialStatus(trial.id, name, *_state(path, trial, monitor, now)) for path, name, trial in rows.values()]


def summary(statuses: Iterable[TrialStatus]) -> str:
    """Returns one line with the number of trials in each state."""
    counts = Counter(status.state for status in statuses)
    names: dict[State, str] = {"done": "done", "running": "running", "waiting": "waiting", "failed": "failed",
                               "damaged": "damaged", "changed": "changed by hand"}  # fmt: skip
    parts = [f"{counts[state]} {name}" for state, name in names.items() if counts[state]]
    return f"{counts.total()} trainings: {', '.join(parts)}"


def _state(path: Path, trial: Trial | PretrainedTeacher, monitor: LeaseMonitor, now: float) -> tuple[State, str]:
    """Returns state and detail of the trial in a folder."""
    record = read_trial(path)
    match record.verdict:
        case "damaged" | "changed" as verdict:
            return verdict, record.advice
        case "failed":
            return "failed", str((record.result or {}).get("reason"))
        case "done":
            top1 = f"{(record.result or {})['top1_last']:.2f} %"
            if record.has_weights:
                return "done", top1
            return "waiting", f"{top1}, but its weights are gone, so the next run trains it again"
    folder = TrialFolder(path)
    epoch, before = folder.epochs_done(), trial.preparation_epochs
    progress = f"epoch {epoch - before} of {trial.epochs} done" if epoch else "no epoch done yet"
    if 0 < epoch <= before:
        progress = f"epoch {epoch} of {before} of the preparation done"
    holder = latest_holder(path)
    if holder is not None and not holder.released:
        # A monitor has to see heartbeats change. This function looks once, so it measures the heartbeat's age.
        recent = now - holder.heartbeat < EXPIRY
        if recent if holder.on_other_machine else monitor.live_holder(path) is not None:
            since = f" since {datetime.fromtimestamp(holder.acquired):%Y-%m-%d %H:%M}" if holder.acquired else ""
            return "running", f"{holder.host}, process {holder.pid}{since}, {progress}"
    if record.failure:
        return "failed", f"{record.failure}; the next run tries again"
    return "waiting", progress if epoch else ""


def split_damaged(planned: Iterable[PlannedTrial], out: Path, recipe: str) -> tuple[list[PlannedTrial], dict[str, str]]:
    """Splits off the trials that no run may touch.

    Returns:
        The trials that are finished or can be trained; and what is wrong and what to do by the id of each trial that is
        damaged or whose teacher is, and of each such teacher.
    """
    sound, reasons = [], {}
    for cell in planned:
        record, teacher = read_trial(out / recipe / cell.trial_id), cell.trial.teacher
        if record.is_damaged:
            reasons[cell.trial_id] = record.advice
            continue
        if record.result is None and teacher is not None:
            teacher_record = read_trial(out / TEACHERS / teacher.id)
            if teacher_record.is_damaged:
                reasons[teacher.id] = teacher_record.advice
                reasons[cell.trial_id] = f"{record.path}: its teacher {teacher.model} ({teacher.id}) is damaged"
                continue
        sound.append(cell)
    return sound, reasons


def _file_system_time(folder: Path) -> float:
    """Returns the clock of the file system, which stamps the heartbeats; this machine's if the folder is read-only."""
    probe = folder / f".clock.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()
