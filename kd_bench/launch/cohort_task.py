"""Cohorts that wait or run, and how trials are divided into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch.worker_protocol import Fault
from kd_bench.trials.folder import TEACHERS

#: A trial, or a teacher to import.
AnyTrial = Trial | PretrainedTeacher


@dataclass
class CohortTask:
    """A cohort that waits or runs.

    Attributes:
        folder: ``OUT/<recipe>``, or the folder of the teachers.
        trials: The unfinished trials.
        attempts: Number of workers started for it.
        failures: Number of workers that died since a trial last finished an epoch.
        not_before: Time, by the monotonic clock, of the next attempt.
        error: The first error that the last worker reported.
        fault: Its kind.
        fresh: Whether it needs a new worker, because an earlier one has failed.
        stopped: Whether the last worker was asked to stop and has saved checkpoints, which is no failure.
    """

    folder: Path
    trials: list[AnyTrial]
    attempts: int = 0
    failures: int = 0
    not_before: float = 0.0
    error: str | None = None
    fault: Fault | None = None
    fresh: bool = False
    stopped: bool = False

    @property
    def teacher(self) -> AnyTrial | None:
        """The trial of their teacher. Some of the trials may have none."""
        return next((trial.teacher for trial in self.trials if trial.teacher is not None), None)

    @property
    def trains_teacher(self) -> bool:
        """Whether its trials are teachers, to be trained or read from a file."""
        return self.folder.name == TEACHERS

    @property
    def is_without_teacher(self) -> bool:
        """Whether it consists of students without a teacher."""
        return not self.trains_teacher and self.teacher is None

    @property
    def stream_key(self) -> str | None:
        """The key of the trials' batches, which is the same for all; None for a pretrained teacher."""
        return self.trials[0].stream_key if isinstance(self.trials[0], Trial) else None

    @property
    def reads_given_weights(self) -> bool:
        """Whether it reads a teacher's weights from a file, in place of training."""
        return any(isinstance(trial, PretrainedTeacher) for trial in self.trials)

    @property
    def log(self) -> Path:
        """The log of its workers."""
        return self.folder / "logs" / f"{self.trials[0].id}.log"

    @property
    def load(self) -> CohortLoad:
        """Its work. It is not split if a worker of it has failed."""
        load = cohort_load(self.trials)
        return load._replace(most_parts=1) if self.fresh else load

    def split(self, parts: int) -> list[CohortTask]:
        """Divides the trials into that many cohorts of nearly equal size, at most one per trial."""
        return [replace(self, trials=self.trials[part]) for part in equal_parts(len(self.trials), parts)]


class CohortLoad(NamedTuple):
    """The work of a cohort.

    Attributes:
        students: Number of its students.
        taught: Whether a teacher runs for them.
        most_parts: Largest number of cohorts that it may be split into.
    """

    students: int
    taught: bool
    most_parts: int


def cohort_load(trials: Sequence[AnyTrial]) -> CohortLoad:
    """Returns the work of a cohort.

    Students of image files stay together, because each part would have to decode all images for itself.
    """
    decodes = any(trial.pipeline is not None for trial in trials)
    taught = any(trial.teacher is not None for trial in trials)
    return CohortLoad(len(trials), taught, 1 if decodes else len(trials))


def equal_parts(count: int, parts: int) -> list[slice]:
    """Divides ``count`` items into that many slices, or into one each if they are fewer; sizes differ by at most 1."""
    parts = min(parts, count)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def group_into_cohorts(trials: Iterable[AnyTrial], folder: Path, size: int) -> list[CohortTask]:
    """Groups trials by batch stream and teacher, at most ``size`` per cohort."""
    groups: dict[str, list[AnyTrial]] = {}
    for trial in {trial.id: trial for trial in trials}.values():
        groups.setdefault(trial.cohort_key, []).append(trial)
    return [
        CohortTask(folder, members[start : start + size])
        for members in groups.values()
        for start in range(0, len(members), size)
    ]
