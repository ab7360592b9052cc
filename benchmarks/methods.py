"""What each method adds to a training step: its own layers and its loss, forward and backward.

They are computed from outputs of student and teacher that are there already. The teacher's pass and the optimiser are
not included. docs/methods.md shows the results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import pairs
from benchmarks.markdown import Section, Table, argument_parser, median_and_range, milliseconds
from benchmarks.measure import cpu_seconds
from kd_bench.config.load import read_recipe
from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Method
from kd_bench.models.outputs import observe
from kd_bench.plan import plan
from kd_bench.training.cohort import CohortModule
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch, Output, Outputs
from kd_bench.utils.errors import UserError

#: Rounds at most.
ROUNDS = 15


@dataclass
class MethodTimes:
    """CPU seconds by round, for all methods that fit a pair.

    Attributes:
        title: The pair.
        student: The student's forward and backward pass with the cross-entropy.
        methods: Each method's part of a step.
    """

    title: str
    student: list[float] = field(default_factory=list)
    methods: dict[str, list[float]] = field(default_factory=dict)

    def extra(self, method: str) -> list[float]:
        """Returns what a method adds to the student's passes, as a fraction of them."""
        rounds = zip(self.methods[method], self.methods[pairs.ALONE], self.student, strict=True)
        return [(method - alone) / student for method, alone, student in rounds]


def benchmark(seconds: float, quick: bool = False) -> MethodTimes:
    """Times one round, and more until ``seconds`` have passed."""
    torch.set_num_threads(1)
    recipe: dict[str, Any] = {
        "extends": "cifar100/pairs_base.yaml",
        "name": "methods",
        "pairs": [{"teacher": "resnet32x4", "student": "shufflenet_v1"}],
        "methods": {name: {} for name in _compared()},
        "trials": 1,
    }
    if quick:
        recipe |= {"batch_size": 8, "pairs": [{"teacher": "resnet14", "student": "resnet8"}]}
        recipe["methods"]["crd"] = {"negatives": 50, "feature_dim": 16}
    planned = {cell.label: cell for cell in plan(read_recipe(recipe), "benchmark")}
    trials = {label: cell.trial for label, cell in planned.items()}
    images = pairs.random_images(512 if quick else pairs.IMAGES)
    network, view = pairs.build_teacher(trials["kd"], images)
    members: dict[str, StudentModule] = {}
    for label, trial in trials.items():
        try:
            members[label] = pairs.build_member(trial, images, network if trial.teacher else None)
        except UserError:
            continue  # the method needs a pair of another kind
    batch = next(pairs.full_batches(trials["kd"], images))
    teachers = CohortModule(list(members.values()), network, view).teacher_outputs(batch)
    tasks = _tasks(members, teachers, batch)
    times = MethodTimes(pairs.pair_title(planned["kd"]), methods={label: [] for label in members})
    for task in tasks.values():
        task()
    begin = time.perf_counter()
    while not times.student or (len(times.student) < ROUNDS and time.perf_counter() - begin < seconds):
        tasks[pairs.ALONE]()  # the first after a student's passes takes longer
        for label, task in tasks.items():
            times.methods[label].append(cpu_seconds(task))
        times.student.append(cpu_seconds(lambda: _run_student(members[pairs.ALONE], batch)))
    return times


def _compared() -> list[str]:
    """Returns the built-in methods that are not of adversarial training, the student alone first."""
    names = [name for name in methods.names() if methods.source_hash(name) is None]
    names = [name for name in names if methods.describe(name).family != "adversarial"]
    return sorted(names, key=lambda name: (name != pairs.ALONE, name))


def _run_student(member: StudentModule, batch: Batch) -> None:
    F.cross_entropy(member.network(member.view(batch.images)), batch.labels).backward()
    member.zero_grad()


def _tasks(
    members: Mapping[str, StudentModule], teachers: Mapping[Any, Outputs], batch: Batch
) -> dict[str, Callable[[], None]]:
    """Returns functions that run a method from outputs, whose gradients they compute, by label."""
    student = members[pairs.ALONE]
    observed: dict[frozenset[Output], Outputs] = {}
    tasks = {}
    for label, member in members.items():
        needs = member.method.needs.student
        if needs not in observed:
            with torch.no_grad():
                observed[needs] = observe(student.network, student.view(batch.images), needs)
        leaves = observed[needs].map(lambda tensor: tensor.detach().requires_grad_())
        teacher = teachers.get(member.method.teacher_batch_norm)

        def task(method: Method = member.method, leaves: Outputs = leaves, teacher: Outputs | None = teacher) -> None:
            torch.stack(list(method(leaves, teacher, batch).values())).sum().backward()
            method.on_step_end()
            method.zero_grad()

        tasks[label] = task
    return tasks


def section(times: MethodTimes) -> Section:
    """Returns the table of the methods."""
    return Section(
        "What each method adds to a step",
        "Milliseconds of the CPU for a method's own layers and its loss, forward and backward, with the cross-entropy, "
        "medians of n rounds. Extra is relative to the student's forward and backward pass, which take "
        f"{milliseconds(median(times.student))} ms, in percent, median (and range). The teacher's pass, the optimiser "
        "and epochs of a preparation are not included.",
        [Table(["pair", "method", "n", "ms", "extra"], [_row(times, method) for method in times.methods])],
    )


def _row(times: MethodTimes, method: str) -> Sequence[object]:
    seconds = times.methods[method]
    extra = median_and_range(times.extra(method), 100, 1)
    return [times.title, method, len(seconds), milliseconds(median(seconds)), extra]


def main() -> int:
    parser = argument_parser(__doc__, seconds=90)
    options = parser.parse_args()
    return section(benchmark(options.seconds, options.quick)).show()


if __name__ == "__main__":
    sys.exit(main())
