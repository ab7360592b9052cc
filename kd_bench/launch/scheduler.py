"""Trains the missing trials of a recipe: teachers first, then cohorts, as many at a time as the executor has slots."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher
from kd_bench.launch.cohort_order import Slots, order_cohorts
from kd_bench.launch.cohort_task import AnyTrial, CohortTask, group_into_cohorts
from kd_bench.launch.executor import Executor, LocalExecutor
from kd_bench.launch.launcher_ranks import LauncherRankZero
from kd_bench.launch.options import RunOptions, parse_executor_options
from kd_bench.launch.progress_display import ProgressDisplay
from kd_bench.launch.worker_group import WorkerGroup
from kd_bench.launch.worker_protocol import BUSY, STOP_SECONDS, Event, WorkerJob
from kd_bench.trials.folder import TEACHERS, Status, TrialFolder
from kd_bench.trials.lease import LeaseMonitor
from kd_bench.utils.errors import Terminated, UserError
from kd_bench.utils.signals import raising_on_termination

#: Seconds between the death of a worker and the next attempt, times the number of the attempt.
RETRY_SECONDS = 1.0

#: Number of times a worker may end without an error and without finishing its trials.
MAX_ATTEMPTS = 3

#: Seconds to wait after another process has acquired the first lease of a cohort, so that it can acquire all of them.
ACQUIRE_SECONDS = 10.0


@dataclass
class RunOutcome:
    """The outcome of a run.

    Attributes:
        trained: Ids of the trials that this run has finished.
        failed: Reasons why trials have no result, by id: the loss diverged, or they could not be trained.
    """

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Scheduler:
    """One run of the recipe ``name``. Several schedulers, on any machines, may share a results folder."""

    def __init__(
        self, name: str, options: RunOptions, display: ProgressDisplay, launcher: LauncherRankZero | None = None
    ) -> None:
        self.options, self.display, self._launcher = options, display, launcher
        self.folder = options.out / name
        self.teachers = options.out / TEACHERS
        self.outcome = RunOutcome()
        self._executor = Executor([])
        self._monitor = LeaseMonitor()
        self._lease_first_seen: dict[str, float] = {}
        self._restored: set[str] = set()
        self._files: dict[str, Path] = {}
        self._waiting: list[CohortTask] = []
        self._running: list[tuple[CohortTask, WorkerGroup]] = []

    def run(self, planned: Sequence[PlannedTrial]) -> RunOutcome:
        """Trains the missing trials, and returns when all have a result or have failed.

        Raises:
            UserError: If a trial's folder was changed by hand or is damaged.
        """
        missing = self._missing([cell.trial for cell in planned], self.folder)
        teachers = self._missing([trial.teacher for trial in missing if trial.teacher is not None], self.teachers)
        self._waiting = group_into_cohorts(teachers, self.teachers, self.options.cohort_size)
        self._files = {cell.teacher_id or cell.trial_id: cell.weights for cell in planned if cell.weights}
        self._waiting += group_into_cohorts(missing, self.folder, self.options.cohort_size)
        if self._waiting:
            self._executor = _make_executor(self.options, self.folder, self._launcher)
        with raising_on_termination():
            try:
                self.display.start({cell.trial_id: cell.label for cell in planned}, teachers, missing)
                while self._waiting or self._running:
                    self._start_waiting()
                    self._waiting += self._collect()
                    self.display.refresh()
                    time.sleep(0.1)
            except (KeyboardInterrupt, Terminated):
                if self._running and self._executor.ends_workers:
                    self.display.message(f"{self.display.name}: stopping; checkpoints are being saved")
                    self._stop_workers()
                elif self._running:
                    self.display.message(
                        f"{self.display.name}: submitted jobs go on; the same command finds them again"
                    )
                raise
            finally:
                self.display.close()  # first: another Ctrl-C during the rest would leave a terminal without its cursor
                for _, group in self._running if self._executor.ends_workers else ():
                    group.kill()
                self._executor.close()
        return self.outcome

    def _stop_workers(self) -> None:
        """Asks the workers to save checkpoints and to end, and waits for them."""
        groups = [group for _, group in self._running]
        for group in groups:
            group.request_stop()
        deadline = time.monotonic() + STOP_SECONDS
        while groups and time.monotonic() < deadline:
            groups = [group for group in groups if group.poll()[1] is None]
            time.sleep(0.05)

    def _missing(self, trials: Iterable[AnyTrial], parent: Path) -> list[AnyTrial]:
        """Returns the trials without a result, each once, and records those that have failed before."""
        missing = []
        for trial in {trial.id: trial for trial in trials}.values():
            folder = TrialFolder(parent / trial.id)
            folder.check_settings()
            status = folder.status()
            if status == "failed" and self.options.retry_failed:
                folder.remove_result()
                status = "missing"
            if status == "missing":
                missing.append(trial)
            elif status == "failed":
                self.outcome.failed[trial.id] = str((folder.result() or {}).get("reason"))
        return missing

    def _start_waiting(self) -> None:
        """Starts the waiting cohorts for which there is a slot, in the order of ``order_cohorts``."""
        if not self._executor.free_slots:
            return
        startable, self._waiting = self._find_startable()
        if not startable:
            return
        training = sum(self._is_training(cohort) for cohort, _ in self._running)
        free = self._executor.free_slots
        slots = Slots(
            free=free,
            idle=free + len(self._running) - training,
            training=training > 0,
            splits_cohorts=self._executor.splits_cohorts,
        )
        for cohort in order_cohorts(startable, slots, self.options.cohort_size):
            if self._executor.free_slots:
                self._start(cohort)
            else:
                self._waiting.append(cohort)

    def _find_startable(self) -> tuple[list[CohortTask], list[CohortTask]]:
        """Returns the waiting trials that can start and those that have to wait, in cohorts."""
        startable, waiting, checked = [], [], []
        reads_teacher = any(cohort.reads_given_weights for cohort in self._waiting) or any(
            cohort.reads_given_weights and self._is_training(cohort) for cohort, _ in self._running
        )
        for cohort in self._waiting:
            # Weights are read soon, and then students without a teacher can join others, or slots are divided evenly.
            delayed = reads_teacher and cohort.is_without_teacher
            ready = []
            if not delayed and time.monotonic() >= cohort.not_before:
                ready = self._ready_trials(cohort)
                checked.append(cohort)
            if ready:
                startable.append(replace(cohort, trials=ready))
            rest = [trial for trial in cohort.trials if trial not in ready]
            if rest:
                waiting.append(replace(cohort, trials=rest))
        return startable, waiting + self._find_removed_teachers(checked)

    def _is_training(self, cohort: CohortTask) -> bool:
        """Whether a running cohort has a trial without a result. Otherwise its slot is about to be free."""
        return any(self._status(cohort.folder, trial) == "missing" for trial in cohort.trials)

    def _is_trained(self, teacher: AnyTrial) -> bool:
        return self._status(self.teachers, teacher) == "done"

    def _status(self, folder: Path, trial: AnyTrial) -> Status:
        """Returns the status of a trial. One that was damaged since the run began has failed, and the others go on."""
        try:
            return TrialFolder(folder / trial.id).status()
        except UserError as error:
            if trial.id not in self.outcome.failed:
                self.outcome.failed[trial.id] = str(error)
                self.display.message(f"{self.display.name}: left out: {error}")
            return "failed"

    def _ready_trials(self, cohort: CohortTask) -> list[AnyTrial]:
        """Returns the trials of a waiting cohort that can start. Removes those with a result, and all that have failed.

        If there are none, the cohort waits for a moment.
        """
        cohort.trials = [trial for trial in cohort.trials if self._is_unfinished(cohort, trial)]
        teacher = cohort.teacher
        if teacher is not None and not self._is_trained(teacher):
            if teacher.id in self.outcome.failed:
                for trial in cohort.trials:
                    self._give_up(cohort, trial, f"its teacher {teacher.model} could not be trained")
                cohort.trials = []
            cohort.not_before = time.monotonic() + 0.5
            return []
        ready = self._unleased_trials(cohort)
        if not ready:
            cohort.not_before = time.monotonic() + 1.0
        return ready

    def _find_removed_teachers(self, students: Sequence[CohortTask]) -> list[CohortTask]:
        """Returns cohorts of teachers that were there and have been removed, e.g. by a cleaner of old files.

        ``students`` would wait for them for ever. A teacher that is removed a second time has failed.
        """
        cohorts = [*self._waiting, *(cohort for cohort, _ in self._running)]
        planned_teachers = {trial.id for cohort in cohorts if cohort.trains_teacher for trial in cohort.trials}
        awaited = {teacher.id: teacher for cohort in students if (teacher := cohort.teacher) is not None}
        removed = []
        for teacher in awaited.values():
            if teacher.id in planned_teachers or teacher.id in self.outcome.failed or self._is_trained(teacher):
                continue
            sentence = f"the teacher {teacher.model} was removed from {self.teachers / teacher.id}"
            if teacher.id in self._restored:
                self.outcome.failed[teacher.id] = f"{sentence} a second time"
                continue
            self._restored.add(teacher.id)
            self.display.message(f"{self.display.name}: {sentence} while students waited for it; it is made again")
            removed.append(teacher)
        return group_into_cohorts(removed, self.teachers, self.options.cohort_size)

    def _is_unfinished(self, cohort: CohortTask, trial: AnyTrial) -> bool:
        """Whether a trial has no result yet. Records a result that another process has written."""
        if trial.id in self.outcome.failed:
            return False
        status = self._status(cohort.folder, trial)
        if status == "missing":
            return True
        if trial.id in self.outcome.failed:  # it is damaged
            return False
        result = TrialFolder(cohort.folder / trial.id).result() or {}
        if status == "failed":
            self.outcome.failed[trial.id] = str(result.get("reason"))
        if trial.id not in self.outcome.trained:
            self.display.trial_finished_by_other_process(trial, result.get("top1_last"))
        return False

    def _unleased_trials(self, cohort: CohortTask) -> list[AnyTrial]:
        """Returns the trials that no process works on; none while another process acquires the cohort's leases."""
        holders = [self._monitor.live_holder(cohort.folder / trial.id) for trial in cohort.trials]
        now = time.monotonic()
        seen = [self._lease_first_seen.setdefault(holder.token, now) for holder in holders if holder]
        if seen and now - max(seen) < ACQUIRE_SECONDS:
            return []
        return [trial for trial, holder in zip(cohort.trials, holders, strict=True) if holder is None]

    def _start(self, cohort: CohortTask) -> None:
        cohort.attempts += 1
        cohort.error = cohort.fault = None
        cohort.stopped = False
        files = {trial.id: str(file) for trial in cohort.trials if (file := self._files.get(trial.id))}
        job = WorkerJob(
            folder=str(cohort.folder),
            trials=[trial.settings() for trial in cohort.trials],
            weights=next(iter(files.values()), None) if isinstance(cohort.trials[0], PretrainedTeacher) else None,
            pretrained=files,
            teacher=str(self.teachers / cohort.teacher.id) if cohort.teacher else None,
            data=str(self.options.data) if self.options.data else None,
            device=self.options.device,
            threads=self.options.threads,
            loggers=self.options.loggers,
            workers=self.options.workers,
            checkpoint_seconds=60 * self.options.checkpoint_minutes,
            eager=self.options.eager,
            fresh=cohort.fresh,
        )
        self._running.append((cohort, self._executor.start(job, cohort.log)))

    def _collect(self) -> list[CohortTask]:
        """Handles the workers' events. Returns the cohorts whose workers have ended and that have to run again."""
        again = []
        for cohort, group in list(self._running):
            events, code = group.poll()
            for event in events:
                self._handle(cohort, event)
            if code is None:
                continue
            self._running.remove((cohort, group))
            self._executor.release(group)
            self.display.cohort_ended(cohort.trials)
            if code == BUSY:
                cohort.attempts -= 1
                cohort.not_before = time.monotonic() + 1.0
                again.append(cohort)
            elif (code == 0 and cohort.attempts < MAX_ATTEMPTS) or (cohort.stopped and cohort.error is None):
                again.append(cohort)
            else:
                again += self._retry(cohort, group.cause or cohort.error or group.describe_exit(), code)
        return again

    def _retry(self, cohort: CohortTask, reason: str, code: int) -> list[CohortTask]:
        """Returns the cohorts to run again after a failure, and gives up the other trials."""
        unfinished = [trial for trial in cohort.trials if self._is_unfinished(cohort, trial)]
        # A full memory of the machine leaves no error: the system kills the worker. A second time without an epoch in
        # between, it is hardly an accident.
        lacks_memory = cohort.fault == "memory" or (code == -signal.SIGKILL and cohort.failures > 0)
        if lacks_memory and len(unfinished) > 1:
            self.display.message(
                f"{self.display.describe(unfinished)}: {reason}: its {len(unfinished)} trials continue in two "
                "processes, one after the other if there is one slot"
            )
            return CohortTask(cohort.folder, unfinished, fresh=True).split(2)
        if cohort.fault in (None, "crash") and cohort.failures < self.options.retries and unfinished:
            cohort.failures += 1
            cohort.fresh = True
            cohort.not_before = time.monotonic() + RETRY_SECONDS * cohort.failures
            self.display.message(
                f"{self.display.describe(unfinished)}: {reason}: started again from the last checkpoint, time "
                f"{cohort.failures} of {self.options.retries}"
            )
            return [cohort]
        for trial in unfinished:
            self._give_up(cohort, trial, f"{reason} (log: {cohort.log})")
        return []

    def _handle(self, cohort: CohortTask, event: Event) -> None:
        trials = {trial.id: trial for trial in cohort.trials}
        if event.get("trial", cohort.trials[0].id) not in trials:
            return  # of a job of an earlier command, which writes to the same file
        match event["event"]:
            case "claimed":
                claimed = [trial for trial in cohort.trials if trial.id in event["trials"]]
                self.display.cohort_started(claimed, event["epochs"])
            case "resumed":
                self.display.cohort_resumed(cohort.trials, event)
            case "progress":
                self.display.cohort_progress(cohort.trials, event)
            case "left":  # a cluster stopped the worker because its time was up
                cohort.attempts, cohort.stopped = 0, True
            case "prepared":
                cohort.failures = 0
                self.display.preparation_epoch_finished(trials[event["trial"]], event["epoch"])
            case "epoch":
                cohort.failures = 0
                self.display.epoch_finished(trials[event["trial"]], event["epoch"], event["top1"])
            case "finished":
                trial = trials[event["trial"]]
                if event["status"] == "failed":
                    self.outcome.failed[trial.id] = event["reason"]
                else:
                    self.outcome.failed.pop(trial.id, None)  # its folder could not be read for a moment
                    self.outcome.trained.append(trial.id)
                    for other in self._waiting:
                        if other.teacher is not None and other.teacher.id == trial.id:
                            other.not_before = 0.0
                self.display.trial_finished(trial, event["top1"], event["reason"])
            case "crashed":
                self._give_up(cohort, trials[event["trial"]], f"{event['reason']} (log: {cohort.log})")
            case "note":
                self.display.message(event["text"])
            case "error":
                cohort.error = cohort.error or str(event["reason"])
                cohort.fault = cohort.fault or event.get("fault")

    def _give_up(self, cohort: CohortTask, trial: AnyTrial, reason: str) -> None:
        if trial.id not in self.outcome.failed:
            self.outcome.failed[trial.id] = reason
            self.display.trial_finished(trial, None, reason)
            TrialFolder(cohort.folder / trial.id).write_failure(reason)


def _make_executor(options: RunOptions, folder: Path, launcher: LauncherRankZero | None) -> Executor:
    """Builds the executor that the options name.

    Raises:
        UserError: If the executor is not available or does not support the options.
    """
    settings = parse_executor_options(options.executor, options.executor_options)
    if options.executor == "local":
        return LocalExecutor(options, launcher)
    if launcher is not None or (options.devices or 1) > 1:
        raise UserError(f"--executor {options.executor}: uses one device per cohort; --devices must be left out")
    if options.executor == "ray":
        from kd_bench.launch.ray_executor import RayExecutor

        return RayExecutor(settings, options.jobs, options.threads, options.device)
    from kd_bench.launch.slurm_executor import SlurmExecutor

    return SlurmExecutor(settings, folder / "logs" / "slurm", options.jobs, options.threads, options.device)
