"""How time and memory grow with the students of a cohort and with the images of a batch.

Times are CPU seconds of steps of cohorts of 1, 2, 4 and 8 students (KD at as many temperatures), and of 16, 32, 64 and
128 images, compared with the straight line that fits best. Memory is the peak resident memory of processes that train
for a few steps: cohorts of these sizes, and one of all eight methods of Table 6, compared with a plain run of one
student plus seven more students with their optimisers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context

import numpy as np
import torch

from benchmarks import pairs
from benchmarks.markdown import Promise, Section, Table, argument_parser, median_and_range
from benchmarks.pairs import METHODS
from benchmarks.step_times import StepTimer
from kd_bench.config.trial import Trial
from kd_bench.trials.environment import peak_memory

PAIR = "VGG13 -> MobileNet-V2"
STUDENTS = (1, 2, 4, 8)
BATCHES = (16, 32, 64, 128)
#: Rounds at most.
ROUNDS = 7
#: Promised ratio of the memory of a cohort of eight to that of a plain run and seven students, at most.
PROMISED = 1.1
#: Promised distance of a time from the line, at most, as a fraction of the largest time.
LINEAR = 0.05
MIB = 2**20
#: Training steps of a process whose memory is measured, and images of its training set.
STEPS, IMAGES = 2, 10_000
#: The methods that need most memory beside their students. The plain run is that of the largest of them.
LARGE_METHODS = ("reviewkd", "crd")


@dataclass
class Growth:
    """Measured times and memory.

    Attributes:
        pair: Title of the pair.
        students: Seconds of a step in each round, by number of students.
        batches: Seconds of a step in each round, by number of images.
        memory: Peak bytes of processes, by what they trained.
        seven: Bytes of parameters, buffers and optimisers of all students but one, by cohort of eight.
    """

    pair: str
    students: dict[int, list[float]] = field(default_factory=dict)
    batches: dict[int, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    seven: dict[str, int] = field(default_factory=dict)


def measure_times(trial: Trial, growth: Growth, rounds: int, seconds: float) -> None:
    """Times cohorts of all sizes in turns. After ``seconds`` by the wall clock, no further round begins."""
    begin = time.perf_counter()
    images = pairs.random_images(4 * max(BATCHES))
    trial = trial.model_copy(update={"compile": "off"})  # each batch size would have to be compiled
    cohorts = [(growth.students, size, trial, size) for size in STUDENTS]
    for size in BATCHES:
        resized = trial.model_copy(update={"batch_size": size * trial.batch_size // 64})
        cohorts.append((growth.batches, resized.batch_size, resized, 1))
    timer = StepTimer()
    tasks = []
    for seconds_by_size, size, settings, students in cohorts:
        cohort = pairs.build_cohort(pairs.kd_at_temperatures(settings, students), images)
        batches = pairs.full_batches(settings, images)
        timer.step(cohort, batches)  # the first step sets things up
        tasks.append((seconds_by_size.setdefault(size, []), cohort, batches))
    for _ in range(rounds):
        for results, cohort, batches in tasks:
            results.append(timer.step(cohort, batches).total)
        if time.perf_counter() - begin > seconds:
            break


def measure_memory(growth: Growth, quick: bool) -> None:
    """Measures the memory of each cohort in a process of its own, two at once."""
    cohorts = {f"KD x {students}": ["kd"] * students for students in (STUDENTS[:2] if quick else STUDENTS)}
    cohorts |= {"all eight methods": list(METHODS)}
    cohorts |= {f"{label} alone": [label] for label in (LARGE_METHODS[:1] if quick else LARGE_METHODS)}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = {name: pool.submit(train, growth.pair, labels, quick) for name, labels in cohorts.items()}
    for name, future in futures.items():
        growth.memory[name], other_students = future.result()
        if len(cohorts[name]) == len(METHODS):
            growth.seven[name] = other_students


def train(pair: str, labels: Sequence[str], quick: bool) -> tuple[int, int]:
    """Trains a cohort for some steps with one thread.

    Returns:
        The peak of this process's memory, and the memory of the states of all students but one, in bytes.
    """
    torch.set_num_threads(1)
    trials = pairs.plan_pairs(quick)[pair]
    images = pairs.random_images(512 if quick else IMAGES)
    same = len(labels) > 1 and len(set(labels)) == 1
    cohort_trials = (
        pairs.kd_at_temperatures(trials[labels[0]], len(labels)) if same else [trials[label] for label in labels]
    )
    cohort = pairs.build_cohort([trial.model_copy(update={"compile": "off"}) for trial in cohort_trials], images)
    timer = StepTimer()
    for batch in islice(pairs.full_batches(cohort_trials[0], images), STEPS):
        timer.step(cohort, iter([batch]))
    return peak_memory("cpu"), sum(map(_state_bytes, cohort.members[1:]))


def _state_bytes(member: pairs.StudentModule) -> int:
    """Returns the bytes of parameters and buffers, including the method's, and of the optimiser's state."""
    states = [value for state in member.optimizer.state.values() for value in state.values()]
    tensors = [*member.parameters(), *member.buffers(), *filter(torch.is_tensor, states)]
    return sum(tensor.nbytes for tensor in tensors)


def benchmark(seconds: float, quick: bool = False) -> Growth:
    """Measures times, for ``seconds`` and a round at most, and memory."""
    torch.set_num_threads(1)
    planned = pairs.plan_pairs(quick)
    growth = Growth(next(iter(planned)) if quick else PAIR)
    measure_times(planned[growth.pair]["kd"], growth, 2 if quick else ROUNDS, seconds)
    measure_memory(growth, quick)
    return growth


def fit_line(points: dict[int, list[float]]) -> tuple[float, float, float]:
    """Fits a line through the medians.

    Returns:
        Intercept, slope, and the largest residual as a fraction of the largest median.
    """
    sizes = list(points)
    medians = [statistics.median(points[size]) for size in sizes]
    slope, intercept = np.polyfit(sizes, medians, 1)
    residuals = [abs(intercept + slope * size - value) for size, value in zip(sizes, medians, strict=True)]
    return float(intercept), float(slope), max(residuals) / max(medians)


def section(growth: Growth) -> Section:
    """Returns the tables and promises."""
    rows, promises = [], []
    for noun, points in (("students", growth.students), ("images", growth.batches)):
        intercept, slope, residual = fit_line(points)
        for size, values in points.items():
            label = f"{size} {noun if size > 1 else noun[:-1]}"
            line = f"{1e3 * (intercept + slope * size):,.0f}"
            rows.append([label, len(values), median_and_range(values, 1e3, 0), line])
        measured = f"{1e3 * intercept:,.0f} ms + {1e3 * slope:,.1f} ms each, at most {100 * residual:.1f} % off"
        promised = f"within {100 * LINEAR:.0f} % of a straight line"
        promises.append(Promise(f"seconds a step by {noun}", promised, measured, residual <= LINEAR))
    for name, seven in growth.seven.items():
        plain, plain_name = max(
            (peak, other)
            for other, peak in growth.memory.items()
            if (other == "KD x 1" if "KD" in name else "alone" in other)
        )
        limit = PROMISED * (plain + seven)
        promised = (
            f"at most {PROMISED} times that of {plain_name} and {seven / MIB:,.0f} MiB of seven students and their "
            f"optimisers, {limit / MIB:,.0f} MiB"
        )
        measured = f"{growth.memory[name] / MIB:,.0f} MiB"
        promises.append(Promise(f"peak memory of {name}", promised, measured, growth.memory[name] <= limit))
    sizes = [[name, f"{peak / MIB:,.0f}"] for name, peak in growth.memory.items()]
    tables = [
        Table(["of", "n", "step, CPU ms", "on the line"], rows),
        Table(["trained", "peak, MiB"], sizes, f"Resident memory of a process, {STEPS} steps."),
    ]
    return Section("Growth with students and images", f"{growth.pair}, KD, without compiling.", tables, promises)


def main() -> int:
    parser = argument_parser(__doc__, seconds=60)
    options = parser.parse_args()
    return section(benchmark(options.seconds, options.quick)).show()


if __name__ == "__main__":
    sys.exit(main())
