"""Runs what is missing of a recipe: teachers first, then cohorts, as many at once as there are places."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.launch import local_process, process_group, remote
from kd_bench.launch.executor import Executor, make_executor
from kd_bench.launch.progress_display import Display
from kd_bench.launch.worker import BUSY, Fault, WorkerJob
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.lease import Watch
from kd_bench.utils.errors import Terminated, UserError

#: Seconds between the death of a worker and the next try, times the number of the try.
PAUSE = 1.0

#: Seconds that workers have to keep where they are when the run is to end; schedulers give 30 in all.
NOTICE = 25.0

One = TypeVar("One", bound=Trial | PretrainedTeacher)

#: How often a cohort is started before it is given up although nobody says what is wrong with it.
ATTEMPTS = 3

#: Seconds for which a cohort that somebody else has just begun to claim is left alone, so as not to tear it apart.
GRACE = 10.0


@dataclass(frozen=True)
class RunOptions:
    """How to run, as far as results do not depend on it (but for ``threads``, on a CPU, in the last bits).

    Attributes:
        out: Results folder.
        data: Where data sets are; None for the default.
        jobs: Cohorts at once; None: one a GPU, or as many as the cores allow.
        threads: Threads of a cohort on the CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        cohort_size: Most students in one process.
        retry_failed: Whether to train trials again that failed before.
        loggers: Where metrics are shown beside the folders: ``tensorboard``, ``wandb``.
        workers: Processes of each cohort that decode images, where these are not held in memory.
        devices: Devices, one process each, that share a cohort's batches; of each machine, where there are several.
        nodes: Machines, on which a launcher has started the command once a device.
        retries: How often a cohort whose worker died is started again without having finished an epoch in between.
        executor: ``local``, ``ray`` or ``slurm``.
        executor_options: What it is told, each ``key=value``.
        checkpoint_minutes: Minutes of training after which a cohort is kept within an epoch.
    """

    out: Path
    data: Path | None = None
    jobs: int | None = None
    threads: int = 1
    device: str = "auto"
    cohort_size: int = 8
    retry_failed: bool = False
    loggers: tuple[str, ...] = ()
    workers: int = 0
    devices: int | None = None
    nodes: int | None = None
    retries: int = 2
    checkpoint_minutes: float = 10.0
    executor: str = "local"
    executor_options: tuple[str, ...] = ()


@dataclass
class CohortTask:
    """Trials that are trained side by side, and what became of that."""

    folder: Path
    trials: list[Trial | PretrainedTeacher]
    attempts: int = 0
    not_before: float = 0.0
    weights: Path | None = None
    error: str | None = None
    fault: Fault | None = None
    failures: int = 0

    @property
    def teacher(self) -> Trial | PretrainedTeacher | None:
        """What makes their teacher."""
        return self.trials[0].teacher


@dataclass
class RunOutcome:
    """What a run did.

    Attributes:
        trained: Trials that were finished in this run.
        failed: Why a trial has no result, by its identity: its loss diverged, or it could not be trained.
    """

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def check_options(options: RunOptions) -> None:
    """Makes sure, before anything is written, that the device exists and that results can be written.

    Raises:
        UserError: Where it does not, or they cannot.
    """
    out = options.out
    for name in options.loggers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--{name} needs a package more; get it with: pip install 'kd-bench[{name}]'")
    remote.options(options.executor, list(options.executor_options))
    if options.device != "auto" and options.executor == "local":
        local_process.devices(options.device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out}: results cannot be written there: {error.strerror or error}") from None


def group_into_cohorts(trials: Iterable[Trial | PretrainedTeacher], folder: Path, size: int) -> list[CohortTask]:
    """Groups trials by stream and teacher, at most ``size`` to a group."""
    groups: dict[tuple[str, str | None], list[Trial | PretrainedTeacher]] = {}
    for trial in {trial.id: trial for trial in trials}.values():
        groups.setdefault(trial.stream, []).append(trial)
    return [
        CohortTask(folder, members[start : start + size])
        for members in groups.values()
        for start in range(0, len(members), size)
    ]


class Scheduler:
    """One run of a recipe. Any number of them, anywhere, may share a results folder."""

    def __init__(
        self, name: str, options: RunOptions, display: Display, launch: process_group.Launch | None = None
    ) -> None:
        self.options, self.display, self._launch = options, display, launch
        self.folder = options.out / name
        self.teachers = options.out / TEACHERS
        self.outcome = RunOutcome()
        self._executor: Executor | None = None
        self._watch = Watch()
        self._folders: dict[str, Path] = {}
        self._first_seen: dict[str, float] = {}
        self._running: list[tuple[CohortTask, local_process.WorkerGroup]] = []

    def run(self, planned: Sequence[PlannedTrial]) -> RunOutcome:
        """Trains whatever is missing of the planned trials, and returns when nothing more can be done.

        Raises:
            UserError: Where a trial's folder was changed by hand, or is damaged.
        """
        missing = self._missing({one.trial_id: one.trial for one in planned}, self.folder)
        wanted = [trial.teacher for trial in missing if trial.teacher is not None]
        teachers = self._missing({trial.id: trial for trial in wanted}, self.teachers)
        waiting = group_into_cohorts(teachers, self.teachers, self.options.cohort_size)
        files = {one.teacher_id: one.weights for one in planned}
        for cohort in waiting:
            cohort.weights = files.get(cohort.trials[0].id)
        waiting += group_into_cohorts(missing, self.folder, self.options.cohort_size)
        self._folders = {trial.id: self.folder / trial.id for trial in missing}
        self._folders |= {trial.id: self.teachers / trial.id for trial in teachers}
        self.display.begin({one.trial_id: one.label for one in planned}, teachers, missing)
        self._executor = make_executor(self.options, self.folder, self._launch) if waiting else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            while waiting or self._running:
                waiting = [cohort for cohort in waiting if self._consider(cohort)]
                waiting += self._collect()
                self.display.tick()
                time.sleep(0.1)
        except (KeyboardInterrupt, Terminated):
            self._leave()
            raise
        finally:
            for _, group in self._running:
                group.stop()
            if self._executor:
                self._executor.close()
            self.display.end()
        return self.outcome

    def _leave(self) -> None:
        """Lets the workers keep where they are, within an epoch too; those that take too long are stopped."""
        for _, group in self._running:
            group.leave()
        deadline = time.monotonic() + NOTICE
        going = [group for _, group in self._running]
        while going and time.monotonic() < deadline:
            going = [group for group in going if group.poll()[1] is None]
            time.sleep(0.05)

    def teacher_folder(self, trial: Trial | PretrainedTeacher) -> TrialFolder:
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

    def _consider(self, cohort: CohortTask) -> bool:
        """Starts a cohort if its time has come; whether it still waits."""
        if self._executor is None or not self._executor.free() or time.monotonic() < cohort.not_before:
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

    def _open(self, cohort: CohortTask, trial: Trial | PretrainedTeacher) -> bool:
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

    def _free(self, cohort: CohortTask) -> list[Trial | PretrainedTeacher]:
        """The trials that nobody works on; none while somebody else has just begun to claim the cohort."""
        holders = [self._watch.holder(cohort.folder / trial.id) for trial in cohort.trials]
        now = time.monotonic()
        seen = [self._first_seen.setdefault(holder.token, now) for holder in holders if holder]
        if seen and now - max(seen) < GRACE:
            return []
        return [trial for trial, holder in zip(cohort.trials, holders, strict=True) if holder is None]

    def _start(self, cohort: CohortTask) -> None:
        assert self._executor is not None
        cohort.attempts += 1
        cohort.error = cohort.fault = None
        job = WorkerJob(
            folder=str(cohort.folder),
            trials=[trial.settings() for trial in cohort.trials],
            weights=str(cohort.weights) if cohort.weights else None,
            teacher=str(self.teachers / cohort.teacher.id) if cohort.teacher else None,
            data=str(self.options.data) if self.options.data else None,
            device=self.options.device,
            threads=self.options.threads,
            loggers=self.options.loggers,
            workers=self.options.workers,
            checkpoint_seconds=60 * self.options.checkpoint_minutes,
        )
        self._running.append((cohort, self._executor.start(job, _log(cohort))))

    def _collect(self) -> list[CohortTask]:
        """Reads what the workers tell; returns the cohorts that have to be taken up again."""
        again = []
        for entry in list(self._running):
            cohort, group = entry
            events, code = group.poll()
            for event in events:
                self._hear(cohort, event)
            if code is None:
                continue
            self._running.remove(entry)
            if self._executor:
                self._executor.ended(group)
            self.display.ended(cohort.trials)
            if code == BUSY:
                cohort.attempts -= 1
                cohort.not_before = time.monotonic() + 1.0
                again.append(cohort)
            elif code == 0 and cohort.attempts < ATTEMPTS:
                again.append(cohort)
            else:
                again += self._failed(cohort, group.cause or cohort.error or _death(code, group))
        return again

    def _failed(self, cohort: CohortTask, reason: str) -> list[CohortTask]:
        """What is to be tried again of a cohort that has failed; the rest is given up."""
        left = [trial for trial in cohort.trials if self._open(cohort, trial)]
        if cohort.fault == "memory" and len(left) > 1:
            half = (len(left) + 1) // 2
            self.display.note(
                f"{reason}: its {len(left)} trials go on in two processes, one after the other where there is one place"
            )
            return [CohortTask(cohort.folder, some, weights=cohort.weights) for some in (left[:half], left[half:])]
        if cohort.fault in (None, "crash") and cohort.failures < self.options.retries and left:
            cohort.failures += 1
            cohort.not_before = time.monotonic() + PAUSE * cohort.failures
            self.display.note(
                f"{reason}: started again from the last epoch, time {cohort.failures} of {self.options.retries}"
            )
            return [cohort]
        for trial in left:
            self._give_up(trial, f"{reason} (log: {_log(cohort)})")
        return []

    def _hear(self, cohort: CohortTask, event: dict[str, Any]) -> None:
        trials = {trial.id: trial for trial in cohort.trials}
        match event["event"]:
            case "claimed":
                self.display.started([trials[one] for one in event["trials"]])
            case "progress":
                self.display.progress(cohort.trials, event)
            case "left":  # as it was asked to, by a cluster whose time was up
                cohort.attempts = 0
            case "epoch":
                cohort.failures = 0
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
                cohort.error = cohort.error or str(event["reason"])
                cohort.fault = cohort.fault or event.get("fault")

    def _give_up(self, trial: Trial | PretrainedTeacher, reason: str) -> None:
        if trial.id not in self.outcome.failed:
            self.outcome.failed[trial.id] = reason
            self.display.finished(trial, None, reason)
            if trial.id in self._folders:
                TrialFolder(self._folders[trial.id]).note_failure(reason)


def _terminate(*_: Any) -> None:
    raise Terminated


def _log(cohort: CohortTask) -> Path:
    return cohort.folder / "logs" / f"{cohort.trials[0].id}.log"


def _death(code: int, group: local_process.WorkerGroup) -> str:
    cause = f"the worker was killed by signal {-code}" if code < 0 else f"the worker ended with code {code}"
    words = group.last_words()
    return f"{cause}{f': {words}' if words and code > 0 else ''}"
