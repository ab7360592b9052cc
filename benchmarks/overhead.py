"""The cost of Lightning's loop: CPU time of training that is not spent on batches, the teacher or the members.

A tiny pair is trained by ``kd_bench.training.fit.fit``, the same call that trains everything. Each of its steps is
timed from batch to batch. The time of the loader, the teacher and the members' steps is subtracted, except for what
Lightning's ``manual_backward`` adds to a backward pass. The rest does not depend on the size of the networks, so it is
compared with the steps of the real pairs.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import pairs
from benchmarks.column_times import ColumnTimes
from benchmarks.markdown import Promise, Section, Table, argument_parser, median_and_quartiles
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.types import Batch

#: Promised fraction of a step, at most.
PROMISED = 0.03
#: Untimed steps at the beginning.
WARM_UP = 10
STUDENTS = (1, 8)


class _CallTimer:
    """Adds up the CPU seconds of the functions that it wraps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - begin

        return timed


class _StampedLoader:
    """A loader that is timed, and that records the time at the beginning of each step."""

    def __init__(self, loader: Any, timer: _CallTimer) -> None:
        self._loader, self._timer = loader, timer
        self.corrupt: dict[Path, str] = {}
        self.stamps: list[tuple[float, dict[str, float]]] = []

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        load = self._timer.wrap("data", next)
        for _ in range(len(self)):
            self.stamps.append((time.process_time(), dict(self._timer.seconds)))
            yield load(batches)


def lightning_seconds(students: int, steps: int) -> list[float]:
    """Returns Lightning's own CPU seconds in each step of a cohort."""
    torch.set_num_threads(1)
    trial = next(iter(pairs.plan_pairs(quick=True).values()))["kd"]
    trial = trial.model_copy(update={"compile": "off", "epochs": 1, "batch_size": 2})
    images = pairs.random_images(2 * (WARM_UP + steps), test=2)
    cohort: Any = pairs.build_cohort(pairs.kd_at_temperatures(trial, students), images)
    train, test = loaders(trial, images, pairs.CPU)
    timer = _CallTimer()
    stamped: Any = _StampedLoader(train, timer)
    cohort.teacher_outputs = timer.wrap("teacher", cohort.teacher_outputs)
    cohort.manual_backward = timer.wrap("manual_backward", cohort.manual_backward)
    for member in cohort.members:
        member.step = timer.wrap("members", member.step)
    backward = torch.autograd.backward
    torch.autograd.backward = timer.wrap("backward", backward)
    try:
        fit(cohort, stamped, test, pairs.CPU)
    finally:
        torch.autograd.backward = backward
    result = []
    for (begin, before), (end, after) in zip(stamped.stamps[WARM_UP:], stamped.stamps[WARM_UP + 1 :], strict=False):
        seconds = {name: after[name] - before.get(name, 0.0) for name in after}
        own_seconds = seconds["data"] + seconds["teacher"] + seconds["members"]
        result.append(end - begin - own_seconds + seconds["manual_backward"] - seconds["backward"])
    return result


def benchmark(steps: int = 150) -> dict[int, list[float]]:
    """Returns Lightning's CPU seconds in each step, by number of students."""
    return {students: lightning_seconds(students, steps) for students in STUDENTS}


def section(seconds: Mapping[int, list[float]], columns: Sequence[ColumnTimes]) -> Section:
    """Returns the tables and promises, compared with the steps of the columns."""
    rows = [
        [f"{students} students" if students > 1 else "1 student", len(values), median_and_quartiles(values, 1e3)]
        for students, values in seconds.items()
    ]
    tables = [Table(["cohort of", "steps", "a step, CPU ms"], rows)]
    fractions, promises = [], []
    for column in columns:
        steps = [median(step.total for step in taken) for taken in (column.alone["kd"], column.cohort)]
        parts = [median(seconds[students]) / step for students, step in zip(STUDENTS, steps, strict=True)]
        fractions.append([column.title, *(f"{100 * part:.2f}" for part in parts)])
        promised, measured = f"under {100 * PROMISED:.0f} % of a step", f"{100 * max(parts):.2f} %"
        promises.append(Promise(column.title, promised, measured, max(parts) < PROMISED))
    if fractions:
        tables.append(Table(["pair", "KD alone, %", "cohort of eight, %"], fractions))
    return Section(
        "Lightning's share of a step",
        "CPU time of our training loop that is neither data, teacher nor members, medians (and quartiles) over steps.",
        tables,
        promises,
    )


def main() -> int:
    parser = argument_parser(__doc__, quick=False)
    parser.add_argument("--steps", type=int, default=150, help="steps to time")
    return section(benchmark(parser.parse_args().steps), []).show()


if __name__ == "__main__":
    sys.exit(main())
