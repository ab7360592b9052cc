"""Measures the energy of a cohort's epochs, and divides it among the members."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_bench.utils.distributed import all_gather_object
from kd_bench.utils.energy_counters import COLUMNS, EnergyCounter

if TYPE_CHECKING:
    from kd_bench.training.cohort import CohortModule

#: Seconds between two readings, so that a counter that begins again at zero is noticed.
_READ_SECONDS = 20.0


class EpochEnergy:
    """The energy of a member's epoch before a resume within it.

    Attributes:
        joules: By kind of counter; empty if the epoch was not resumed.
        seconds: The member's own seconds before the resume; None if the epoch was not resumed.
        so_far: Energy until the next checkpoint within the epoch, that before the resume included.
    """

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self.seconds: float | None = None
        self.so_far: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint within the epoch has of it: nothing without a counter."""
        return {"joules": self.so_far} if self.so_far else {}

    def restore(self, seconds: float, joules: Mapping[str, float]) -> None:
        """Restores the member's own seconds and the energy of a checkpoint within the epoch."""
        self.seconds, self.joules = seconds, dict(joules)

    def with_rest(self, joules: Mapping[str, float]) -> dict[str, float]:
        """Returns the energy of the epoch so far, for that of the part in this process.

        A kind of counter that was not read in both parts is left out: a part of an epoch would pass for all of it.
        """
        if self.seconds is None:
            return dict(joules)
        return {kind: self.joules[kind] + value for kind, value in joules.items() if kind in self.joules}


class EnergyMeter:
    """Reads the counters of all processes of a cohort.

    Args:
        counters: Those of this process.
    """

    def __init__(self, counters: Sequence[EnergyCounter]) -> None:
        self._counters = list(counters)
        self._start: dict[tuple[str, str], float] = {}
        self._last_read = self._begin = 0.0

    @property
    def seconds(self) -> float:
        """Time since ``begin``."""
        return time.perf_counter() - self._begin

    def begin(self) -> None:
        """Begins a measurement."""
        self._start, self._begin = self._read(), time.perf_counter()

    def read_if_due(self) -> None:
        """Reads the counters if that was some time ago. To be called after each step."""
        if self._counters and time.perf_counter() - self._last_read > _READ_SECONDS:
            self._read()

    def joules(self) -> dict[str, float]:
        """Returns the joules since ``begin`` by kind of counter, over all processes.

        A counter that several processes read counts once. A kind that one process cannot read is left out.
        """
        now = self._read()
        joules = {key: now[key] - start for key, start in self._start.items() if key in now}
        processes = all_gather_object(joules)
        kinds = set.intersection(*({kind for kind, _ in of_process} for of_process in processes))
        devices = {key: value for of_process in processes for key, value in of_process.items()}
        sums = {
            kind: sum(value for (of, _), value in devices.items() if of == kind) for kind in COLUMNS if kind in kinds
        }
        return {kind: value for kind, value in sums.items() if value > 0}  # a counter that stands still counts nothing

    def _read(self) -> dict[tuple[str, str], float]:
        values = {}
        for counter in tuple(self._counters):
            try:
                values[counter.kind, counter.device] = counter.joules()
            except Exception:  # the drivers' libraries have many types of errors
                self._counters = [other for other in self._counters if other.kind != counter.kind]
        self._last_read = time.perf_counter()
        kinds = {counter.kind for counter in self._counters}
        return {key: value for key, value in values.items() if key[0] in kinds}


def divide(joules: Mapping[str, float], alone: float, work: float) -> dict[str, float]:
    """Returns a member's energy as if it were trained alone, as its seconds are.

    Args:
        joules: The cohort's, by kind of counter.
        alone: Seconds that the member would take alone: its own, and those of the batches and of its teacher.
        work: Seconds that all members take one after another, with batches and teacher once. This is the time of the
            epoch, unless members run side by side on a GPU.
    """
    return {kind: value * alone / work for kind, value in joules.items()} if work > 0 else {}


def note_energy_so_far(cohort: CohortModule) -> None:
    """Notes the energy of each member's epoch so far, for a checkpoint within it."""
    joules, seconds = cohort.energy.joules(), cohort.energy.seconds
    member_seconds = {}
    for member in cohort.members:
        total = member.stopwatch.read()
        member.stopwatch.add(total)
        member_seconds[id(member)] = total - (member.stopwatch.energy.seconds or 0.0)
    teacher = {}
    for norm_mode, stopwatch in cohort.teacher_stopwatches.items():
        teacher[norm_mode] = stopwatch.read()
        stopwatch.add(teacher[norm_mode])
    work = max(seconds, sum(member_seconds.values()))
    without_teacher = max(0.0, work - sum(member_seconds.values()) - sum(teacher.values()))
    for member in cohort.active_members:
        shared = without_teacher + (cohort.teacher_seconds_of(member, teacher) or 0.0)
        energy = member.stopwatch.energy
        energy.so_far = energy.with_rest(divide(joules, member_seconds[id(member)] + shared, work))


def add_joules(row: dict[str, Any], joules: Mapping[str, float]) -> None:
    """Adds the energy of an epoch to its row of metrics."""
    row.update({COLUMNS[kind]: value for kind, value in joules.items()})


def summed_joules(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the energy of all epochs by kind of counter, of those kinds that measured each of them."""
    rows = list(rows)
    return {
        kind: sum(row[column] for row in rows)
        for kind, column in COLUMNS.items()
        if rows and all(column in row for row in rows)
    }
