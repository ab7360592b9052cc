"""Cohorts that wait or run, and how trials are divided into them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch.worker_protocol import Fault

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
    """

    folder: Path
    trials: list[AnyTrial]
    attempts: int = 0
    failures: int = 0
    not_before: float = 0.0
    error: str | None = None
    fault: Fault | None = None
    fresh: bool = False

    @property
    def teacher(self) -> AnyTrial | None:
        """The trial of their teacher. Some of the trials may have none."""
        return next((trial.teacher for trial in self.trials if trial.teacher is not None), None)

    @property
    def stream_key(self) -> str | None:
        """The key of the trials' batches, which is the same for all; None for a pretrained teacher."""
        return self.trials[0].stream_key if isinstance(self.trials[0], Trial) else None

    @property
    def log(self) -> Path:
        """The log of its workers."""
        return self.folder / "logs" / f"{self.trials[0].id}.log"

    def split(self, parts: int) -> list[CohortTask]:
        """Returns the trials in that many cohorts, or in one each if they are fewer; sizes differ by at most one."""
        parts = min(parts, len(self.trials))
        bounds = [len(self.trials) * part // parts for part in range(parts + 1)]
        return [replace(self, trials=self.trials[start:end]) for start, end in pairwise(bounds)]


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


def split_for_idle_slots(cohorts: Sequence[CohortTask], slots: int) -> list[CohortTask]:
    """Splits cohorts if otherwise some slots had nothing to do while the last cohorts run.

    Each part pays for a teacher's pass of its own, in a slot that would be idle. Results do not depend on it, because a
    student's weights are the same alone and in company.

    Args:
        cohorts: Cohorts that can start, in their order.
        slots: Number of free slots.

    Returns:
        The cohorts, with those that were split at the end.
    """
    sizes = [(len(cohort.trials), cohort.teacher is not None) for cohort in cohorts]
    counts = parts_for_idle_slots(sizes, slots)
    whole = [cohort for cohort, parts in zip(cohorts, counts, strict=True) if parts == 1]
    divided = [(cohort, parts) for cohort, parts in zip(cohorts, counts, strict=True) if parts > 1]
    return whole + [part for cohort, parts in divided for part in cohort.split(parts)]


def parts_for_idle_slots(sizes: Sequence[tuple[int, bool]], slots: int) -> list[int]:
    """Returns the number of parts of each cohort. See ``split_for_idle_slots``.

    Cohorts start in rounds of as many as there are slots. If the last round has fewer, the largest cohorts are split,
    so that it has as many, unless all would end no earlier. A teacher's pass counts as much as a student's step.

    Args:
        sizes: Number of students of each cohort, and whether it has a teacher.
        slots: Number of slots.
    """
    whole = [1] * len(sizes)
    in_last_round = len(sizes) % slots
    if in_last_round == 0:
        return whole
    largest = sorted(range(len(sizes)), key=lambda index: sizes[index][0])[-in_last_round:]
    split = list(whole)
    for index in largest:
        split[index] = min(slots // in_last_round, sizes[index][0])
    return min(whole, split, key=lambda parts: _makespan(sizes, parts, slots))


def _makespan(sizes: Sequence[tuple[int, bool]], parts: Sequence[int], slots: int) -> float:
    """Returns when the last part ends, if each starts as soon as a slot is free, whole cohorts first."""
    free_at = [0.0] * slots
    for (students, taught), count in sorted(zip(sizes, parts, strict=True), key=lambda pair: pair[1] > 1):
        for _ in range(count):
            heapq.heapreplace(free_at, free_at[0] + students / count + taught)
    return max(free_at)
