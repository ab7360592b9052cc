"""How far a recipe is: every trial, and its teachers, as their folders have it. Imports nothing heavy."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.lease import EXPIRY, Holder, Watch, latest
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import read_json

State = Literal["done", "running", "waiting", "failed"]

_EPOCH = re.compile(r"epoch-(\d{6})-.*\.pt")


@dataclass(frozen=True)
class TrialStatus:
    """Where a trial stands.

    Attributes:
        trial: Its identity.
        name: Pair, row and seed.
        state: Done; in the hands of a process that lives; to be done; or failed, in which case another run of the
            recipe tries again unless its loss diverged.
        about: The accuracy, where it runs and how far it is, or why it failed.
    """

    trial: str
    name: str
    state: State
    about: str


def trial_statuses(planned: Sequence[PlannedTrial], out: Path, recipe: str) -> list[TrialStatus]:
    """Where each trial of a recipe stands, teachers first, each once.

    Args:
        planned: The recipe's trials.
        out: The results folder.
        recipe: The recipe's name.
    """
    clock = _clock(out / recipe)
    watch = Watch()
    found = {}
    for one in planned:
        if one.trial.teacher is not None:
            taught = one.trial.teacher
            found[taught.id] = (out / TEACHERS / taught.id, f"teacher {taught.model}{_seed(taught)}", taught)
    for one in planned:
        pair = f"{one.teacher} -> {one.student}" if one.taught_by else one.student
        found[one.trial_id] = (out / recipe / one.trial_id, f"{pair}, {one.label}, seed {one.seed}", one.trial)
    return [_standing(path, name, trial, watch, clock) for path, name, trial in found.values()]


def summary(found: Iterable[TrialStatus]) -> str:
    """How many are in which state, as one line."""
    counts = Counter(one.state for one in found)
    total = sum(counts.values())
    named = ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "waiting", "failed") if counts[state])
    return f"{total} trainings: {named}"


def _seed(taught: Trial | PretrainedTeacher) -> str:
    return f", seed {taught.seed}" if isinstance(taught, Trial) else ", weights from a file"


def _standing(path: Path, name: str, trial: Trial | PretrainedTeacher, watch: Watch, clock: float) -> TrialStatus:
    folder = TrialFolder(path)
    if not path.is_dir():
        return TrialStatus(trial.id, name, "waiting", "")
    try:
        status, result = folder.status(), folder.result() or {}
    except UserError as error:
        return TrialStatus(trial.id, name, "failed", str(error))
    if status == "done":
        return TrialStatus(trial.id, name, "done", f"{result['top1_last']:.2f} %")
    if status == "failed":
        return TrialStatus(trial.id, name, "failed", str(result.get("reason")))
    holder = latest(path)
    epoch = _epochs(path)
    far = f"epoch {epoch} of {trial.epochs} done" if epoch else "no epoch done yet"
    if holder is not None and not holder.released:
        silent = clock - holder.beat
        if (holder.elsewhere and silent < EXPIRY) or (watch.holder(path) is not None and not holder.elsewhere):
            return TrialStatus(trial.id, name, "running", f"{_where(holder)}, {far}")
    failure = _failure(path)
    if failure:
        return TrialStatus(trial.id, name, "failed", f"{failure}; the next run tries again")
    return TrialStatus(trial.id, name, "waiting", far if epoch else "")


def _where(holder: Holder) -> str:
    since = f" since {datetime.fromtimestamp(holder.since):%Y-%m-%d %H:%M}" if holder.since else ""
    return f"{holder.host}, process {holder.pid}{since}"


def _epochs(path: Path) -> int:
    with suppress(OSError):
        found = (_EPOCH.fullmatch(one.name) for one in os.scandir(path / "checkpoint"))
        return max((int(one[1]) for one in found if one), default=0)
    return 0


def _failure(path: Path) -> str | None:
    with suppress(ValueError, OSError):
        content: Any = read_json(path / "failure.json")
        if isinstance(content, dict) and isinstance(content.get("reason"), str):
            return str(content["reason"])
    return None


def _clock(folder: Path) -> float:
    """The time of the file system, whose stamps signs of life are; this machine's where nothing can be written."""
    probe = folder / f".clock.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()
