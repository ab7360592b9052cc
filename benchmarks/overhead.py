"""What Lightning's loop costs: CPU time of training that is spent neither on batches, nor the teacher, nor the members.

A tiny pair is trained by ``kd_bench.training.fit.fit``, the very call that trains everything. Each of its steps is
timed from batch to batch; what the loader, the teacher and the members' steps took is taken off, but for what
Lightning's ``manual_backward`` adds to a backward pass. What is left does not depend on the size of the networks, so it
is compared with the steps of the real pairs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

from benchmarks import measure, pairs  # measure first: it quietens the profiler

# isort: split

import torch

from benchmarks.growth import at_temperatures, cohort
from benchmarks.writing import Promise, Section, Table, show
from kd_bench.training.fit import fit, loaders
from kd_bench.types import Batch

if TYPE_CHECKING:
    from benchmarks.column import Found

#: Of a step, at most.
PROMISED = 0.03
#: Steps that are not looked at.
WARM = 10
STUDENTS = (1, 8)


class Clock:
    """CPU seconds inside the functions that it wraps, by name."""

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


class Stamped:
    """A loader that stamps each step and times itself."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self._loader, self._clock = loader, clock
        self.corrupt: dict[Path, str] = {}
        self.stamps: list[tuple[float, dict[str, float]]] = []

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        give = self._clock.wrap("data", next)
        for _ in range(len(self)):
            self.stamps.append((time.process_time(), dict(self._clock.seconds)))
            yield give(batches)


def seconds_a_step(students: int, steps: int) -> list[float]:
    """Lightning's own CPU seconds in each step of a cohort."""
    torch.set_num_threads(1)
    kd = next(iter(pairs.planned(quick=True).values()))["kd"]
    kd = kd.model_copy(update={"compile": "off", "epochs": 1, "batch_size": 2})
    data = pairs.images(2 * (WARM + steps), test=2)
    made = cohort(at_temperatures(kd, students), data)
    train, test = loaders(kd, data, torch.device("cpu"))
    clock = Clock()
    stamped = Stamped(train, clock)
    made.teach = clock.wrap("teacher", made.teach)  # type: ignore[method-assign]
    made.manual_backward = clock.wrap("manual_backward", made.manual_backward)  # type: ignore[method-assign]
    for member in made.members:
        member.step = clock.wrap("members", member.step)  # type: ignore[method-assign]
    backward = torch.autograd.backward
    torch.autograd.backward = clock.wrap("backward", backward)
    try:
        fit(made, stamped, test, torch.device("cpu"))  # type: ignore[arg-type]
    finally:
        torch.autograd.backward = backward
    found = []
    for (begin, before), (end, after) in zip(stamped.stamps[WARM:], stamped.stamps[WARM + 1 :], strict=False):
        took = {name: after[name] - before.get(name, 0.0) for name in after}
        inside = took["data"] + took["teacher"] + took["members"] - (took["manual_backward"] - took["backward"])
        found.append(end - begin - inside)
    return found


def find(steps: int = 150) -> dict[int, list[float]]:
    """By the number of students."""
    return {students: seconds_a_step(students, steps) for students in STUDENTS}


def section(found: Mapping[int, list[float]], columns: Sequence[Found]) -> Section:
    """Beside the steps of real pairs, where those were measured."""
    rows = [
        [f"{students} students" if students > 1 else "1 student", len(values), _quartiles(values)]
        for students, values in found.items()
    ]
    result = Section(
        "Lightning's share of a step",
        "CPU time of our training loop that is neither data, teacher nor members, medians (and quartiles) over steps.",
        [Table(["cohort of", "steps", "a step, CPU ms"], rows)],
    )
    shares = []
    for one in columns:
        own = [statistics.median(found[students]) for students in STUDENTS]
        steps = [statistics.median(step.total for step in some) for some in (one.alone["kd"], one.cohort)]
        parts = [took / step for took, step in zip(own, steps, strict=True)]
        shares.append([one.title, *(f"{100 * part:.2f}" for part in parts)])
        result.promises.append(
            Promise(
                one.title,
                f"under {100 * PROMISED:.0f} % of a step",
                f"{100 * max(parts):.2f} %",
                max(parts) < PROMISED,
            )
        )
    if shares:
        result.tables.append(Table(["pair", "KD alone, %", "cohort of eight, %"], shares))
    return result


def _quartiles(values: list[float]) -> str:
    low, middle, high = (f"{1e3 * value:.2f}" for value in measure.spread(values))
    return f"{middle} ({low} to {high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="steps to look at")
    options = parser.parse_args()
    return show(section(find(options.steps), []))


if __name__ == "__main__":
    sys.exit(main())
