"""How time and memory grow: with the students of a cohort, and with the images of a batch.

CPU seconds of steps of cohorts of 1, 2, 4 and 8 students (KD at as many temperatures), and of 16, 32, 64 and 128
images, each with the straight line that fits best and how far they are from it. Peaks of the resident memory of
processes of their own, which train for a few steps: cohorts of these sizes, and one of all eight methods of Table 6,
beside a plain run of one student and seven more students with their optimisers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

from benchmarks import measure, pairs  # measure first: it quietens the profiler

# isort: split

import numpy as np
import torch

from benchmarks.pairs import METHODS
from benchmarks.writing import Promise, Section, Table, show, spread
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate import operation_counter
from kd_bench.trials.environment import peak_memory

PAIR = "VGG13 -> MobileNet-V2"
STUDENTS = (1, 2, 4, 8)
BATCHES = (16, 32, 64, 128)
#: Rounds at most.
ROUNDS = 7
#: Times the memory of a plain run and seven students with their optimisers that a cohort of eight may have at most.
PROMISED = 1.1
#: Share of the largest time that one may be off the line: the issue's "linear", as far as a clock can tell.
LINEAR = 0.05
MIB = 2**20
#: Training steps of a process whose memory is looked at, images in its set.
STEPS, IMAGES = 2, 10_000
#: The methods that need most memory beside their students; a plain run is of the one of them that has most.
HEAVY = ("reviewkd", "crd")


@dataclass
class Found:
    """Seconds of each round by size, and bytes of each process."""

    pair: str
    students: dict[int, list[float]] = field(default_factory=dict)
    batches: dict[int, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    """Peaks of processes, by what they trained."""
    seven: dict[str, int] = field(default_factory=dict)
    """Of cohorts of eight: parameters, buffers and optimisers of all students but one."""


def at_temperatures(trial: Trial, students: int) -> list[Trial]:
    """So many trials of KD that share everything but the temperature."""
    return [
        trial.model_copy(
            update={
                "method": trial.method.model_copy(
                    update={"hyperparameters": trial.method.hyperparameters | {"temperature": float(place + 1)}}
                )
            }
        )
        for place in range(students)
    ]


def cohort(trials: Sequence[Trial], data: ArrayDataset) -> pairs.Cohort:
    network, view = pairs.teacher(trials[0], data)
    return pairs.cohort([pairs.member(trial, data, network) for trial in trials], network, view)


def times(pair: dict[str, Trial], found: Found, rounds: int, seconds: float) -> None:
    """Cohorts take turns."""
    begin = time.perf_counter()
    batch = pair["kd"].batch_size
    data = pairs.images(4 * max(BATCHES))
    # Without compiling, which each size of a batch would want for itself.
    plain = pair["kd"].model_copy(update={"compile": "off"})
    tasks = [
        (found.students, students, cohort(at_temperatures(plain, students), data), pairs.batches(plain, data))
        for students in STUDENTS
    ]
    sizes = [plain.model_copy(update={"batch_size": size * batch // 64}) for size in BATCHES]
    tasks += [(found.batches, one.batch_size, cohort([one], data), pairs.batches(one, data)) for one in sizes]
    laps = pairs.Laps()
    for *_, one, stream in tasks:
        pairs.step(one, stream, laps)  # what only a first step needs is made
    for _ in range(rounds):
        for into, size, one, stream in tasks:
            into.setdefault(size, []).append(pairs.step(one, stream, laps).total)
        if time.perf_counter() - begin > seconds:
            break


def memory(pair: str, found: Found, quick: bool) -> None:
    """Each in a process of its own, two at once."""
    wanted = {f"KD x {students}": ["kd"] * students for students in (STUDENTS[:2] if quick else STUDENTS)}
    wanted |= {"all eight methods": list(METHODS)}
    wanted |= {f"{label} alone": [label] for label in (HEAVY[:1] if quick else HEAVY)}
    jobs = iter(wanted.items())
    for some in zip_longest(jobs, jobs):
        started = [(one[0], _start(pair, one[1], quick)) for one in some if one is not None]
        for name, process in started:
            answer, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"growth: the process of {name} ended with {process.returncode}")
            found.memory[name], seven = json.loads(answer.splitlines()[-1])
            if len(wanted[name]) == len(METHODS):
                found.seven[name] = seven


def _start(pair: str, labels: Sequence[str], quick: bool) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--train", *labels, "--pair", pair]
    return subprocess.Popen([*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True)


def train(pair: str, labels: Sequence[str], quick: bool) -> tuple[int, int]:
    """Trains a cohort for a few steps; the process's peak, and what all but its first student keep."""
    trials = pairs.planned(quick)[pair]
    data = pairs.images(512 if quick else IMAGES)
    several = len(labels) > 1 and len(set(labels)) == 1
    chosen = at_temperatures(trials[labels[0]], len(labels)) if several else [trials[label] for label in labels]
    made = cohort([one.model_copy(update={"compile": "off"}) for one in chosen], data)
    laps = pairs.Laps()
    for batch in islice(pairs.batches(chosen[0], data), STEPS):
        pairs.step(made, iter([batch]), laps)
    return peak_memory("cpu"), sum(map(_kept, made.members[1:]))


def _kept(member: pairs.StudentModule) -> int:
    """Bytes of parameters and buffers, the method's too, and of the optimiser's state."""
    states = (value for state in member.optimizer.state.values() for value in state.values())
    kept = [*member.parameters(), *member.buffers(), *states]
    return sum(operation_counter.size(one) for one in kept if isinstance(one, torch.Tensor))


def find(seconds: float, quick: bool = False) -> Found:
    """Everything; times take ``seconds`` at most and a round."""
    torch.set_num_threads(1)
    planned = pairs.planned(quick)
    pair = next(iter(planned)) if quick else PAIR
    found = Found(pair)
    times(planned[pair], found, 2 if quick else ROUNDS, seconds)
    memory(pair, found, quick)
    return found


def line(points: dict[int, list[float]]) -> tuple[float, float, float]:
    """Intercept and slope of the best line through the medians, and the largest residual as a share of the largest."""
    sizes = list(points)
    medians = [statistics.median(points[size]) for size in sizes]
    slope, intercept = np.polyfit(sizes, medians, 1)
    residuals = [abs(intercept + slope * size - value) for size, value in zip(sizes, medians, strict=True)]
    return float(intercept), float(slope), max(residuals) / max(medians)


def section(found: Found) -> Section:
    rows, result = [], Section("Growth with students and images", f"{found.pair}, KD, without compiling.")
    for what, points in (("students", found.students), ("images", found.batches)):
        intercept, slope, off = line(points)
        rows += [
            [
                f"{size} {what if size > 1 else what[:-1]}",
                len(values),
                spread(values, 1e3, 0),
                f"{1e3 * (intercept + slope * size):,.0f}",
            ]
            for size, values in points.items()
        ]
        result.promises.append(
            Promise(
                f"seconds a step by {what}",
                f"within {100 * LINEAR:.0f} % of a straight line",
                f"{1e3 * intercept:,.0f} ms + {1e3 * slope:,.1f} ms each, at most {100 * off:.1f} % off",
                off <= LINEAR,
            )
        )
    result.tables.append(Table(["of", "n", "step, CPU ms", "on the line"], rows))
    sizes = [[name, f"{peak / MIB:,.0f}"] for name, peak in found.memory.items()]
    result.tables.append(Table(["trained", "peak, MiB"], sizes, f"Resident memory of a process, {STEPS} steps."))
    for name, seven in found.seven.items():
        plain = max(
            (peak, of) for of, peak in found.memory.items() if (of == "KD x 1" if "KD" in name else "alone" in of)
        )
        allowed = PROMISED * (plain[0] + seven)
        result.promises.append(
            Promise(
                f"peak memory of {name}",
                f"at most {PROMISED} times that of {plain[1]} and {seven / MIB:,.0f} MiB of seven students and their "
                f"optimisers, {allowed / MIB:,.0f} MiB",
                f"{found.memory[name] / MIB:,.0f} MiB",
                found.memory[name] <= allowed,
            )
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="after which no further round begins")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it works")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)  # what the processes do
    parser.add_argument("--pair", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        print(json.dumps(train(options.pair, options.train, options.quick)))
        return 0
    return show(section(find(options.seconds, options.quick)))


if __name__ == "__main__":
    assert measure
    sys.exit(main())
