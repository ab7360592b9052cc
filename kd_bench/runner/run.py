"""Runs what is missing of a recipe: teachers first, then cohorts, as many at once as there are places."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kd_bench.errors import UserError
from kd_bench.recipe import Given, Planned, Trial
from kd_bench.runner import local
from kd_bench.runner.display import Display
from kd_bench.runner.folder import TEACHERS, TrialFolder
from kd_bench.runner.lease import Watch
from kd_bench.runner.worker import BUSY, Job

One = TypeVar("One", bound=Trial | Given)

#: How often a cohort is started before it is given up although nobody says what is wrong with it.
ATTEMPTS = 3

#: Seconds for which a cohort that somebody else has just begun to claim is left alone, so as not to tear it apart.
GRACE = 10.0


@dataclass(frozen=True)
class Options:
    """How to run, as far as results do not depend on it (but for ``threads``, on a CPU, in the last bits).

    Attributes:
        out: Results folder.
        data: Where data sets are; None for the default.
        jobs: Cohorts at once; None: one a GPU, or as many as the cores allow.
        threads: Threads of a cohort on the CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        cohort_size: Most students in one process.
        retry_failed: Whether to train trials again that failed before.
        tensorboard: Whether to write TensorBoard events as well.
        workers: Processes of each cohort that decode images, where these are not held in memory.
    """

    out: Path
    data: Path | None = None
    jobs: int | None = None
    threads: int = 1
    device: str = "auto"
    cohort_size: int = 8
    retry_failed: bool = False
    tensorboard: bool = False
    workers: int = 0


@dataclass
class Cohort:
    """Trials that are trained side by side, and what became of that."""

    folder: Path
    trials: list[Trial | Given]
    attempts: int = 0
    not_before: float = 0.0
    weights: Path | None = None
    error: str | None = None

    @property
    def teacher(self) -> Trial | Given | None:
        """What makes their teacher."""
        return self.trials[0].teacher


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        trained: Trials that were finished in this run.
        failed: Why a trial has no result, by its identity: its loss diverged, or it could not be trained.
    """

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def prepare(options: Options) -> None:
    """Makes sure, before anything is written, that the device exists and that results can be written.

    Raises:
        UserError: Where it does not, or they cannot.
    """
    out = options.out
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs a package more; get it with: pip install 'kd-bench[tensorboard]'")
    if options.device != "auto":
        local.devices(options.device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out}: results cannot be written there: {error.strerror or error}") from None


def cohorts(trials: Iterable[Trial | Given], folder: Path, size: int) -> list[Cohort]:
    """Groups trials by stream and teacher, at most ``size`` to a group."""
    groups: dict[tuple[str, str | None], list[Trial | Given]] = {}
    for trial in {trial.id: trial for trial in trials}.values():
        groups.setdefault(trial.stream, []).append(trial)
    return [
        Cohort(folder, members[start : start + size])
        for members in groups.values()
        for start in range(0, len(members), size)
    ]


class Runner:
    """One run of a recipe. Any number of them, anywhere, may share a results folder."""

    def __init__(self, name: str, options: Options, display: Display) -> None:
        self.options, self.display = options, display
        self.folder = options.out / name
        self.teachers = options.out / TEACHERS
        self.outcome = Outcome()
        self._places: list[str] = []
        self._watch = Watch()
        self._first_seen: dict[str, float] = {}
        self._running: list[tuple[Cohort, local.Process, str]] = []

    def run(self, planned: Sequence[Planned]) -> Outcome:
        """Trains whatever is missing of the planned trials, and returns when nothing more can be done.

        Raises:
            UserError: Where a trial's folder was changed by hand, or is damaged.
        """
        missing = self._missing({one.trial_id: one.trial for one in planned}, self.folder)
        wanted = [trial.teacher for trial in missing if trial.teacher is not None]
        teachers = self._missing({trial.id: trial for trial in wanted}, self.teachers)
        waiting = cohorts(teachers, self.teachers, self.options.cohort_size)
        files = {one.teacher_id: one.weights for one in planned}
        for cohort in waiting:
            cohort.weights = files.get(cohort.trials[0].id)
        waiting += cohorts(missing, self.folder, self.options.cohort_size)
        self.display.begin({one.trial_id: one.label for one in planned}, teachers, missing)
        self._places = _places(self.options) if waiting else []
        try:
            while waiting or self._running:
                waiting = [cohort for cohort in waiting if self._consider(cohort)]
                waiting += self._collect()
                self.display.tick()
                time.sleep(0.1)
        finally:
            for _, process, _ in self._running:
                process.stop()
            self.display.end()
        return self.outcome

    def teacher_folder(self, trial: Trial | Given) -> TrialFolder:
        """Where a teacher's training lies."""
        return TrialFolder(self.teachers / trial.id)

    def _missing(self, trials: Mapping[str, One], folder: Path) -> list[One]:
        found = []
        for trial in trials.values():
            place = TrialFolder(folder / trial.id)
            place.check()
            status = place.status()
            if status == "failed" and self.options.retry_failed:
                place.forget_result()
                status = "missing"
            if status == "missing":
                found.append(trial)
            elif status == "failed":
                self.outcome.failed[trial.id] = str((place.result() or {}).get("reason"))
        return found

    def _consider(self, cohort: Cohort) -> bool:
        """Starts a cohort if its time has come; whether it still waits."""
        if not self._places or time.monotonic() < cohort.not_before:
            return True
        cohort.trials = [trial for trial in cohort.trials if self._open(cohort, trial)]
        if not cohort.trials:
            return False
        teacher = cohort.teacher
        if teacher is not None and self.teacher_folder(teacher).status() != "done":
            if teacher.id not in self.outcome.failed:
                cohort.not_before = time.monotonic() + 0.5
                return True
            for trial in cohort.trials:
                self._give_up(trial, f"its teacher {teacher.model} could not be trained")
            return False
        free = self._free(cohort)
        if not free:
            cohort.not_before = time.monotonic() + 1.0
            return True
        self._start(replace(cohort, trials=free))
        cohort.trials = [trial for trial in cohort.trials if trial not in free]
        return bool(cohort.trials)

    def _open(self, cohort: Cohort, trial: Trial | Given) -> bool:
        if trial.id in self.outcome.failed:
            return False
        folder = TrialFolder(cohort.folder / trial.id)
        status = folder.status()
        if status == "missing":
            return True
        result = folder.result() or {}
        if status == "failed":
            self.outcome.failed[trial.id] = str(result.get("reason"))
        if trial.id not in self.outcome.trained:
            self.display.finished_elsewhere(trial, result.get("top1_last"))
        return False

    def _free(self, cohort: Cohort) -> list[Trial | Given]:
        """The trials that nobody works on; none while somebody else has just begun to claim the cohort."""
        holders = [self._watch.holder(cohort.folder / trial.id) for trial in cohort.trials]
        now = time.monotonic()
        seen = [self._first_seen.setdefault(holder.token, now) for holder in holders if holder]
        if seen and now - max(seen) < GRACE:
            return []
        return [trial for trial, holder in zip(cohort.trials, holders, strict=True) if holder is None]

    def _start(self, cohort: Cohort) -> None:
        place = self._places.pop(0)
        cohort.attempts += 1
        job = Job(
            folder=str(cohort.folder),
            trials=[trial.settings() for trial in cohort.trials],
            weights=str(cohort.weights) if cohort.weights else None,
            teacher=str(self.teachers / cohort.teacher.id) if cohort.teacher else None,
            data=str(self.options.data) if self.options.data else None,
            device=place,
            threads=self.options.threads,
            tensorboard=self.options.tensorboard,
            workers=self.options.workers,
        )
        process = local.start(job, cohort.folder / "logs" / f"{cohort.trials[0].id}.log")
        self._running.append((cohort, process, place))

    def _collect(self) -> list[Cohort]:
        """Reads what the workers tell; returns the cohorts that have to be taken up again."""
        again = []
        for entry in list(self._running):
            cohort, process, place = entry
            events, code = process.poll()
            for event in events:
                self._hear(cohort, event)
            if code is None:
                continue
            self._running.remove(entry)
            self._places.append(place)
            self.display.ended(cohort.trials)
            if code == BUSY:
                cohort.attempts -= 1
                cohort.not_before = time.monotonic() + 1.0
                again.append(cohort)
            elif code == 0 and cohort.attempts < ATTEMPTS:
                again.append(cohort)
            else:
                reason = cohort.error or _death(code, process)
                for trial in cohort.trials:
                    if TrialFolder(cohort.folder / trial.id).status() == "missing":
                        self._give_up(trial, f"{reason} (log: {process.log})")
        return again

    def _hear(self, cohort: Cohort, event: dict[str, Any]) -> None:
        trials = {trial.id: trial for trial in cohort.trials}
        match event["event"]:
            case "claimed":
                self.display.started([trials[one] for one in event["trials"]])
            case "progress":
                self.display.progress(cohort.trials, event)
            case "epoch":
                self.display.epoch(trials[event["trial"]], event["epoch"], event["top1"])
            case "finished":
                trial = trials[event["trial"]]
                if event["status"] == "failed":
                    self.outcome.failed[trial.id] = event["reason"]
                else:
                    self.outcome.trained.append(trial.id)
                self.display.finished(trial, event["top1"], event["reason"])
            case "crashed":
                self._give_up(trials[event["trial"]], event["reason"])
            case "note":
                self.display.note(event["text"])
            case "error":
                cohort.error = str(event["reason"])

    def _give_up(self, trial: Trial | Given, reason: str) -> None:
        if trial.id not in self.outcome.failed:
            self.outcome.failed[trial.id] = reason
            self.display.finished(trial, None, reason)


def _places(options: Options) -> list[str]:
    found = local.devices(options.device)
    if found == ["cpu"]:
        return ["cpu"] * (options.jobs or max(1, (os.cpu_count() or 1) // options.threads))
    jobs = options.jobs or len(found)
    return [found[index % len(found)] for index in range(jobs)]


def _death(code: int, process: local.Process) -> str:
    cause = f"the worker was killed by signal {-code}" if code < 0 else f"the worker ended with code {code}"
    words = process.last_words()
    return f"{cause}{f': {words}' if words and code > 0 else ''}"
