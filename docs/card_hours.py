"""Computes what the epochs of the paper's recipes take on cards, as ``kd-bench estimate`` does, and reads it.

``python docs/generate.py --hours`` counts all recipes again, which takes some minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_bench.config.load import find_recipe, read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.trials.plan_without_weights import plan_with_placeholders

#: Estimates by recipe, so that the page can be written without counting.
FILE = Path(__file__).parent / "card_hours.json"

#: The cards, by the names of ``devices/gpus.yaml``.
CARDS = ("h100", "h200", "rtx-4090")

#: Recipes that the page is about; those of one line are estimated together, because they share networks.
RECIPES = {
    "cifar100/table6": ("cifar100/table6",),
    "cifar100/other_pairs": ("cifar100/other_pairs",),
    "imagenet/table8": ("imagenet/table8",),
    "robustness": tuple(
        f"robustness/{name}" for name in ("table7", "table9", "table10", "table11", "table12", "cifar10")
    ),
}

#: For each kind of cohort "teacher", a network, or empty; "members", their networks and rows; "epochs" of one cohort;
#: and "cards", the seconds of an epoch by card: first of images and teacher, then of each member and its evaluation.
Cohorts = dict[str, list[dict[str, Any]]]


def plan(names: Iterable[str]) -> dict[str, list[PlannedTrial]]:
    """Returns the planned trials of recipes, by recipe. Weights of teachers need not be there."""
    planned = {}
    for name in names:
        recipe = read_recipe(name).model_copy(update={"published": None})
        planned[name] = plan_with_placeholders(recipe, str(find_recipe(name)))[0]
    return planned


def read() -> Cohorts:
    """Returns the stored estimates."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def count() -> None:
    """Counts all recipes and stores the estimates, one cohort a line."""
    import tempfile

    from kd_bench.estimate.estimate_recipe import estimate_recipe
    from kd_bench.estimate.gpus import Assumptions, load_gpus
    from kd_bench.launch.options import RunOptions

    gpus = {name: gpu for name, gpu in load_gpus().items() if name in CARDS}
    parts = []
    for title, names in RECIPES.items():
        trials = {cell.trial_id: cell for planned in plan(names).values() for cell in planned}
        with tempfile.TemporaryDirectory() as empty:
            options = RunOptions(out=Path(empty), data=Path(empty), device="cpu")
            cost = estimate_recipe(list(trials.values()), options, "hours", gpus, Assumptions(), print, steps=0)
        lines = []
        for group in cost.groups:
            teacher = group.trials[0].teacher
            seconds = {
                name: [
                    round(epoch.shared, 3),
                    *(round(student + epoch.evaluation / len(epoch.students), 3) for student in epoch.students),
                ]
                for name, epoch in group.gpu_epochs.items()
            }
            line = {
                "teacher": teacher.model if teacher else "",
                "members": [[trial.model, label] for trial, label in zip(group.trials, group.labels, strict=True)],
                "epochs": max(group.epochs),
                "cards": seconds,
            }
            lines.append(json.dumps(line))
        parts.append(f"{json.dumps(title)}: [\n" + ",\n".join(lines) + "\n]")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
