"""Counts what a method adds to a training step, and reads what ``make bench`` measured of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_bench.models import cards

#: Counts of all methods, so that the page can be written without counting.
FILE = Path(__file__).parent / "method_costs.json"
#: The page that ``make bench`` writes.
BENCHMARKS = Path(__file__).parents[1] / "results" / "benchmarks.md"

#: Teacher and student for which costs are counted, unless a method's entry names others.
PAIR = "resnet32x4 > shufflenet_v1"

#: Numbers by name, by method; see ``count``.
Costs = dict[str, dict[str, Any]]


def pair_title(pair: str) -> str:
    """Returns the published names of a pair, e.g. "ResNet32x4 to ShuffleNet-V1"."""
    teacher, student = pair.split(" > ")
    named = cards.find("teachers", "cifar100", teacher), cards.find("students", "cifar100", student)
    return " to ".join(card.published_name for card in named if card)


def read() -> Costs:
    """Returns the stored counts."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def write(costs: Costs) -> None:
    """Stores counts, one method a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(costs[name])}" for name in sorted(costs)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def measured_times(benchmarks: str) -> dict[str, float]:
    """Returns the extra time of a step of the methods that benchmarks/methods.py timed for ``PAIR``.

    It is a fraction of the step of the student alone, without the teacher's pass.

    Args:
        benchmarks: The text of results/benchmarks.md.
    """
    title = pair_title(PAIR).replace(" to ", " -> ")
    times: dict[str, float] = {}
    head: list[str] = []
    for line in benchmarks.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["pair", "method"] or not line:
            head = cells
        elif "extra" in head and cells[0] == title:
            row = dict(zip(head, cells, strict=True))
            times[row["method"]] = float(row["extra"].split()[0].replace(",", "")) / 100
    return times


def count(names: Iterable[str], pair: str = PAIR) -> Costs:
    """Counts methods with their defaults, on CIFAR-100 in batches of 64.

    Args:
        names: The methods.
        pair: Teacher and student.

    Returns:
        For each method "parameters", the number of its trained parameters; "state", the bytes of its parameters and
        buffers; "teacher", "step" and "step_alone", the operations per image of the teacher's pass, of the student's
        forward and backward pass, and of the latter without a method; and "peak", the most bytes in use by the
        student's passes. A method that cannot be counted is left out.
    """
    import torch

    from kd_bench import plan
    from kd_bench.config.load import read_recipe
    from kd_bench.estimate import placeholders
    from kd_bench.estimate.step_cost import DiscardingWriter, build_untrained_teacher, count_cohort
    from kd_bench.training.build import build_student

    teacher, student = pair.split(" > ")
    recipe: dict[str, Any] = {
        "extends": "cifar100/base.yaml",
        "name": "costs",
        "pairs": [{"teacher": teacher, "student": student}],
        "methods": ["none", *sorted(set(names) - {"none"})],
        "trials": 1,
    }
    trials = {planned.label: planned.trial for planned in plan.plan(read_recipe(recipe), "costs")}
    images, _ = placeholders.images_or_placeholders(trials["none"].dataset, None, Path("no-images"))
    alone = count_cohort([trials["none"]], images)
    costs: Costs = {}
    for name, trial in trials.items():
        cost = count_cohort([trial], images)
        member = cost.members[0]
        if name not in names or member.uncounted:
            continue
        network = build_untrained_teacher(trial.teacher, images)[0] if trial.teacher else None
        torch.manual_seed(0)
        method = build_student(trial, images, network, DiscardingWriter()).method
        costs[name] = {
            "parameters": sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad),
            "state": member.parameters - alone.members[0].parameters,
            "teacher": cost.teacher.flops // cost.images if trial.teacher else 0,
            "step": member.step.flops // cost.images,
            "step_alone": alone.members[0].step.flops // alone.images,
            "peak": member.peak,
        }
    return costs
