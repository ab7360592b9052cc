"""The missing trials of a recipe in groups of equal cost, and the hours that they take."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.teacher_start import allows_features
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.estimate.timing_job import EpochTime, Timing
from kd_bench.launch.cohort_order import Slots, order_cohorts
from kd_bench.launch.cohort_task import CohortTask, group_into_cohorts
from kd_bench.launch.devices import share_gpus
from kd_bench.launch.options import RunOptions
from kd_bench.trials.folder import TEACHERS, TrialFolder

if TYPE_CHECKING:
    from kd_bench.estimate.step_cost import CohortCost

#: Settings that do not change the cost of a step.
_WITHOUT_COST = {"seed", "epochs", "schedule", "schema", "teacher"}


@dataclass
class CohortGroup:
    """Cohorts of equal cost: they differ in their seeds only.

    Attributes:
        title: The networks.
        labels: The table's rows, one per member.
        trials: The members of one of the cohorts.
        trains_teacher: Whether the members are teachers.
        cohorts: The cohorts.
        epochs: The students' own epochs left to train, one number per cohort.
        preparations: Epochs of preparations left to train, one number per member of each cohort.
        images: Numbers of training and test images.
        cost: Counted cost of one cohort.
        timing: Measured time of one cohort on this machine; None if it was not timed.
        gpu_epochs: Estimated time of an epoch on each GPU, by the GPU's name.
        notes: Remarks for the user.
    """

    title: str
    labels: tuple[str, ...]
    trials: list[Trial]
    trains_teacher: bool = False
    cohorts: list[CohortTask] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    preparations: list[tuple[int, ...]] = field(default_factory=list)
    images: tuple[int, int] = (0, 0)
    cost: CohortCost | None = None
    timing: Timing | None = None
    gpu_epochs: dict[str, EpochTime] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, trial_ids: Collection[str]) -> None:
        """Removes members, by identity. Cohorts that would have trained them train the others."""
        is_kept = [trial.id not in trial_ids for trial in self.trials]
        self.labels = tuple(compress(self.labels, is_kept))
        self.trials = list(compress(self.trials, is_kept))
        self.cohorts = [replace(cohort, trials=list(compress(cohort.trials, is_kept))) for cohort in self.cohorts]
        self.preparations = [tuple(compress(epochs, is_kept)) for epochs in self.preparations]

    @property
    def local_epoch(self) -> EpochTime | None:
        """Time of an epoch on this machine; None if it was not timed."""
        return self.timing.epoch if self.timing else None

    def hours(self, epoch: EpochTime, *, unshared: bool = False) -> float:
        """Returns the hours of all cohorts of the group, one after the other.

        Args:
            epoch: Time of an epoch.
            unshared: Assume that every student is trained in a process of its own.
        """
        seconds = epoch.unshared_seconds if unshared else epoch.seconds
        before = sum(epoch.preparation_seconds(epochs, unshared=unshared) for epochs in self.preparations)
        processes = len(self.epochs) * (len(self.trials) if unshared else 1)
        return (seconds * sum(self.epochs) + before + epoch.startup * processes) / 3600


@dataclass
class RecipeCost:
    """The time that a recipe would take.

    Attributes:
        recipe: The recipe's name.
        groups: Teachers to train, then students.
        devices: The devices that cohorts are spread over, one entry per concurrent cohort.
        device_name: Name of this machine's device.
        finished: Trials that have a result.
        pretrained_teachers: Teachers whose weights are read from files and tested.
        notes: Remarks for the user, for example about missing images.
        cohort_size: Largest number of students in a cohort.
    """

    recipe: str
    groups: list[CohortGroup]
    devices: list[str]
    device_name: str
    finished: int
    pretrained_teachers: int
    notes: list[str]
    cohort_size: int

    def hours(self, gpu: str | None = None, *, unshared: bool = False) -> float:
        """Returns the hours of all groups on a GPU, by its name, or on this machine. See ``CohortGroup.hours``."""
        epochs = [(group, group.local_epoch if gpu is None else group.gpu_epochs[gpu]) for group in self.groups]
        return sum(group.hours(epoch, unshared=unshared) for group, epoch in epochs if epoch)

    def wall_hours(self) -> float:
        """Returns the hours from beginning to end on this machine, with concurrent cohorts in the order of a run."""
        return max((end for _, end in self._schedule), default=0.0) / 3600

    @property
    def splits_cohorts(self) -> bool:
        """Whether a run on this machine splits some of the cohorts."""
        return any(count > 1 for count in Counter(origins[0] for origins in self._origins()).values())

    @property
    def joins_cohorts(self) -> bool:
        """Whether in a run on this machine some students without a teacher join other cohorts."""
        return any(len(set(origins)) > 1 for origins in self._origins())

    def _origins(self) -> list[list[int]]:
        """Returns for each cohort of the run the numbers of the cohorts that its trials are from, its own one first."""
        numbers = {trial.id: number for number, cohort in enumerate(self._timed_cohorts()) for trial in cohort.trials}
        return [[numbers[trial.id] for trial in cohort.trials] for cohort, _ in self._schedule]

    def _timed_cohorts(self) -> list[CohortTask]:
        return [cohort for group in self.groups if group.timing for cohort in group.cohorts]

    @cached_property
    def _schedule(self) -> list[tuple[CohortTask, float]]:
        """The cohorts of a run of the timed ones, each with the seconds from the run's beginning to its end."""
        waiting = [replace(cohort) for cohort in self._timed_cohorts()]
        untrained = {trial.id for cohort in waiting if cohort.trains_teacher for trial in cohort.trials}
        running: list[tuple[float, int, CohortTask]] = []  # a number decides between equal ends
        ended: list[tuple[CohortTask, float]] = []
        free, now = len(self.devices), 0.0
        while waiting or running:
            startable = [cohort for cohort in waiting if cohort.teacher is None or cohort.teacher.id not in untrained]
            later = [cohort for cohort in waiting if cohort.teacher is not None and cohort.teacher.id in untrained]
            slots = Slots(free, free, training=bool(running), splits_cohorts=not share_gpus(self.devices))
            ordered = order_cohorts(startable, slots, self.cohort_size)
            for cohort in ordered[:free]:
                heapq.heappush(running, (now + self._cohort_seconds(cohort), len(ended) + len(running), cohort))
            waiting = later + ordered[free:]
            now, _, cohort = heapq.heappop(running)
            free = len(self.devices) - len(running)
            untrained -= {trial.id for trial in cohort.trials}
            ended.append((cohort, now))
        return ended

    def _cohort_seconds(self, cohort: CohortTask) -> float:
        """Returns the seconds of a cohort of a run, whose members may be those of several groups."""
        members = [self._members[trial.id] for trial in cohort.trials]
        times = [group.local_epoch for group, _, _ in members]
        epoch = EpochTime.joined([(time, index) for time, (_, _, index) in zip(times, members, strict=True) if time])
        epochs = max(group.epochs[number] for group, number, _ in members)
        before = [group.preparations[number][index] for group, number, index in members]
        return epoch.seconds * epochs + epoch.preparation_seconds(before) + epoch.startup

    @cached_property
    def _members(self) -> dict[str, tuple[CohortGroup, int, int]]:
        """The group of each trial, the number of its cohort in the group, and its own number in the cohort."""
        return {
            trial.id: (group, number, index)
            for group in self.groups
            for number, cohort in enumerate(group.cohorts)
            for index, trial in enumerate(cohort.trials)
        }


def cost_key(trial: Trial) -> str:
    """Returns a hash of the settings that the cost of a step depends on, including the teacher's network and input."""
    settings = trial.model_dump(mode="json", exclude=_WITHOUT_COST)
    teacher = trial.teacher
    teacher_settings = None if teacher is None else [teacher.model, teacher.input.model_dump(mode="json")]
    return identity({"settings": settings, "teacher": teacher_settings})


def group_missing_trials(
    planned: Sequence[PlannedTrial], options: RunOptions, name: str
) -> tuple[list[CohortGroup], int, int]:
    """Groups the missing trials of a recipe, by name, and the missing trainings of their teachers by cost.

    Returns:
        The groups; the number of trials that have a result; the number of teachers to read from files.
    """
    labels = {cell.trial_id: cell.label for cell in planned}
    trials = {cell.trial_id: cell.trial for cell in planned}
    folder, teacher_folder = options.out / name, options.out / TEACHERS
    missing = [trial for trial in trials.values() if _is_missing(folder, trial)]
    teachers = {trial.teacher.id: trial.teacher for trial in missing if trial.teacher is not None}
    missing_teachers = [teacher for teacher in teachers.values() if _is_missing(teacher_folder, teacher)]
    trained_teachers = [teacher for teacher in missing_teachers if isinstance(teacher, Trial)]
    groups: dict[tuple[str, ...], CohortGroup] = {}
    for trains_teacher, group_trials, path in ((True, trained_teachers, teacher_folder), (False, missing, folder)):
        for cohort in group_into_cohorts(group_trials, path, options.cohort_size):
            members = [trial for trial in cohort.trials if isinstance(trial, Trial)]
            key = tuple(map(cost_key, members))
            if key not in groups:
                rows = tuple("teacher" if trains_teacher else labels[trial.id] for trial in members)
                groups[key] = CohortGroup(_title(members), rows, members, trains_teacher)
            groups[key].cohorts.append(cohort)
            done = {trial.id: TrialFolder(path / trial.id).epochs_done() for trial in members}
            left = max(trial.epochs - max(0, done[trial.id] - trial.preparation_epochs) for trial in members)
            if all(map(allows_features, members)):
                left = min(left, 1)  # the network runs once, and the epochs of its classifier take next to no time
            groups[key].epochs.append(left)
            preparations = (max(0, trial.preparation_epochs - done[trial.id]) for trial in members)
            groups[key].preparations.append(tuple(preparations))
    return list(groups.values()), len(trials) - len(missing), len(missing_teachers) - len(trained_teachers)


def _is_missing(folder: Path, trial: Trial | PretrainedTeacher) -> bool:
    return TrialFolder(folder / trial.id).status() == "missing"


def _title(members: Sequence[Trial]) -> str:
    students = ", ".join(dict.fromkeys(trial.model for trial in members))
    teacher = members[0].teacher
    return f"{teacher.model} -> {students}" if teacher else students
