"""The missing trials of a recipe in groups of equal cost, and the hours that they take."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.teacher_start import allows_features
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.estimate.timing_job import EpochTime, Timing
from kd_bench.launch.cohort_task import cohort_load, equal_parts, group_into_cohorts, parts_for_idle_slots
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
    epochs: list[int] = field(default_factory=list)
    preparations: list[tuple[int, ...]] = field(default_factory=list)
    images: tuple[int, int] = (0, 0)
    cost: CohortCost | None = None
    timing: Timing | None = None
    gpu_epochs: dict[str, EpochTime] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, trial_ids: Collection[str]) -> None:
        """Removes members, by identity. Cohorts that would have trained them train the others."""
        kept = [trial.id not in trial_ids for trial in self.trials]
        self.labels = tuple(compress(self.labels, kept))
        self.trials = list(compress(self.trials, kept))
        self.preparations = [tuple(compress(epochs, kept)) for epochs in self.preparations]

    @property
    def local_epoch(self) -> EpochTime | None:
        """Time of an epoch on this machine; None if it was not timed."""
        return self.timing.epoch if self.timing else None

    def cohort_seconds(self, cohort: int, parts: int = 1) -> float:
        """Returns the seconds of one cohort of a timed group on this machine, or of the longest of its parts."""
        epoch = self.local_epoch
        assert epoch is not None
        epochs, before = self.epochs[cohort], self.preparations[cohort]
        return max(
            epoch.part(part).seconds * epochs + epoch.part(part).preparation_seconds(before[part]) + epoch.startup
            for part in equal_parts(len(self.trials), parts)
        )

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
    """

    recipe: str
    groups: list[CohortGroup]
    devices: list[str]
    device_name: str
    finished: int
    pretrained_teachers: int
    notes: list[str]

    def hours(self, gpu: str | None = None, *, unshared: bool = False) -> float:
        """Returns the hours of all groups on a GPU, by its name, or on this machine. See ``CohortGroup.hours``."""
        epochs = [(group, group.local_epoch if gpu is None else group.gpu_epochs[gpu]) for group in self.groups]
        return sum(group.hours(epoch, unshared=unshared) for group, epoch in epochs if epoch)

    def wall_hours(self) -> float:
        """Returns the hours from beginning to end on this machine, with concurrent cohorts and teachers first.

        As in a run, cohorts that need not wait for a teacher go first, and the last ones of either kind are split if
        devices were idle otherwise.
        """
        idle_since = [0.0] * len(self.devices)
        teacher_ready: dict[str, float] = {}
        for group, cohort, parts in (*self._cohorts(False), *self._cohorts(True)):
            teacher = group.trials[0].teacher
            for _ in range(parts):
                start = max(heapq.heappop(idle_since), teacher_ready.get(teacher.model, 0.0) if teacher else 0.0)
                end = start + group.cohort_seconds(cohort, parts)
                heapq.heappush(idle_since, end)
            if group.trains_teacher:
                teacher_ready |= {trial.model: end for trial in group.trials}
        return max(idle_since) / 3600

    @property
    def splits_cohorts(self) -> bool:
        """Whether a run on this machine splits some of the cohorts."""
        return any(parts > 1 for _, _, parts in (*self._cohorts(False), *self._cohorts(True)))

    def _cohorts(self, taught: bool) -> list[tuple[CohortGroup, int, int]]:
        """Returns the timed cohorts with or without a teacher: group, number in the group, and parts.

        Teachers come first, then the largest.
        """
        groups = [group for group in self.groups if group.timing and taught == bool(group.trials[0].teacher)]
        groups.sort(key=lambda group: (not group.trains_teacher, -len(group.trials)))
        cohorts = [(group, cohort) for group in groups for cohort in range(len(group.epochs))]
        parts = [1] * len(cohorts)
        if not share_gpus(self.devices):
            parts = parts_for_idle_slots([cohort_load(group.trials) for group, _ in cohorts], len(self.devices))
        return [(group, cohort, count) for (group, cohort), count in zip(cohorts, parts, strict=True)]


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
            left = max(trial.epochs - _epochs_done(path / trial.id) for trial in members)
            if all(map(allows_features, members)):
                left = min(left, 1)  # the network runs once, and the epochs of its classifier take next to no time
            groups[key].epochs.append(left)
            groups[key].preparations.append(tuple(_preparation_left(path / trial.id, trial) for trial in members))
    return list(groups.values()), len(trials) - len(missing), len(missing_teachers) - len(trained_teachers)


def _is_missing(folder: Path, trial: Trial | PretrainedTeacher) -> bool:
    return TrialFolder(folder / trial.id).status() == "missing"


def _epochs_done(folder: Path, name: str = "metrics.csv") -> int:
    file = folder / name
    return max(0, len(file.read_text(encoding="utf-8").splitlines()) - 1) if file.is_file() else 0


def _preparation_left(folder: Path, trial: Trial) -> int:
    return max(0, trial.preparation_epochs - _epochs_done(folder, "preparation.csv"))


def _title(members: Sequence[Trial]) -> str:
    students = ", ".join(dict.fromkeys(trial.model for trial in members))
    teacher = members[0].teacher
    return f"{teacher.model} -> {students}" if teacher else students
