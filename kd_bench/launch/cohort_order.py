"""The order in which cohorts take free slots, and how they are joined and split for it. The estimate uses it, too."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from kd_bench.launch.cohort_task import CohortLoad, CohortTask


class Slots(NamedTuple):
    """The slots of an executor at one moment.

    Attributes:
        free: Number of slots in which a cohort can start now.
        idle: Number of these, and of those whose cohort has finished its trials and is about to end.
        training: Whether cohorts train in other slots.
        splits_cohorts: See ``Executor``.
    """

    free: int
    idle: int
    training: bool
    splits_cohorts: bool


def order_cohorts(startable: Sequence[CohortTask], slots: Slots, size: int) -> list[CohortTask]:
    """Returns the cohorts that can start in the order in which they take slots, some of them joined or split.

    Teachers are first, because others wait for them, and students without a teacher last, because they may still join
    other cohorts. Results do not depend on any of this: a student's weights are the same alone and in company.

    Args:
        startable: The cohorts, whose trials may be moved to others.
        slots: The slots.
        size: Largest number of students in a cohort.
    """
    cohorts = list(startable)
    # On a cluster, students without a teacher join others only if otherwise they had to wait for a slot.
    if slots.splits_cohorts or len(cohorts) > slots.free:
        cohorts = _join(cohorts, size)
    # While other cohorts train, cohorts are split only for slots for which none is left.
    if slots.splits_cohorts and not (slots.training and len(cohorts) >= slots.idle):
        cohorts = _split(cohorts, slots.idle)
    return sorted(cohorts, key=lambda cohort: (not cohort.trains_teacher, cohort.is_without_teacher))


def _join(cohorts: Sequence[CohortTask], size: int) -> list[CohortTask]:
    """Moves students without a teacher to cohorts with the same batches, up to their size."""
    joining = [cohort for cohort in cohorts if cohort.is_without_teacher and not cohort.fresh]
    for cohort in cohorts:
        if cohort.teacher is None or cohort.fresh:
            continue
        for other in joining:
            if other.trials and other.stream_key == cohort.stream_key:
                free = size - len(cohort.trials)
                cohort.trials, other.trials = cohort.trials + other.trials[:free], other.trials[free:]
    return [cohort for cohort in cohorts if cohort.trials]


def _split(cohorts: Sequence[CohortTask], slots: int) -> list[CohortTask]:
    """Splits cohorts if that keeps slots busy that would be idle otherwise, e.g. while the last cohorts run.

    Each part pays for a teacher's pass of its own.

    Returns:
        The same cohorts in the same order if none is split, else the largest first.
    """
    counts = parts_for_idle_slots([cohort.load for cohort in cohorts], slots)
    parts = [part for cohort, count in zip(cohorts, counts, strict=True) for part in cohort.split(count)]
    return parts if len(parts) == len(cohorts) else sorted(parts, key=lambda part: -part.load.students)


def parts_for_idle_slots(loads: Sequence[CohortLoad], slots: int) -> list[int]:
    """Returns into how many parts each cohort is to be split, 1 for a cohort that stays whole.

    A teacher's pass counts as much as a student's step. Cohorts are split one by one, always the one with the largest
    parts, as long as there may be idle slots. Of these divisions the one is taken with which all end earliest, but one
    with more parts only if all end earlier by a tenth.

    Args:
        loads: The cohorts.
        slots: Number of slots.
    """
    parts = [1] * len(loads)
    best, earliest = list(parts), _makespan(loads, parts, slots)
    for _ in range(slots):
        divisible = [index for index, load in enumerate(loads) if parts[index] < load.most_parts]
        if not divisible:
            break
        parts[max(divisible, key=lambda index: loads[index].students / parts[index])] += 1
        makespan = _makespan(loads, parts, slots)
        if makespan <= 0.9 * earliest:
            best, earliest = list(parts), makespan
    return best


def _makespan(loads: Sequence[CohortLoad], parts: Sequence[int], slots: int) -> float:
    """Returns when the last part ends, if the longest start first, each as soon as a slot is free."""
    lengths = [
        load.taught + load.students / count for load, count in zip(loads, parts, strict=True) for _ in range(count)
    ]
    free_at = [0.0] * slots
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)
