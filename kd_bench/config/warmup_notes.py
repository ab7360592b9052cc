"""Says which rows of a recipe never reach the full weight of their terms. Imports nothing heavy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable

from kd_bench.config.network_names import short_name
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial


def warmup_notes(recipe: Recipe, planned: Iterable[PlannedTrial]) -> list[str]:
    """Returns a sentence for each row whose warm-up is longer than its training, with the setting that changes it.

    Args:
        recipe: The recipe.
        planned: Trials of its rows, by their labels.
    """
    notes = {}
    for cell in planned:
        warmup, epochs = cell.trial.method.hyperparameters.get("warmup_epochs"), cell.trial.epochs
        if isinstance(warmup, int) and warmup > epochs:
            rows = _rows_with_warmup(recipe, cell)
            key = f"{rows}.{cell.label}.warmup_epochs"
            shorter = max(1, round(epochs / 12))  # the share that is published for CIFAR-100: 20 of 240
            change = f"{key}={shorter}"
            if set(cell.label) & set(".="):  # which would divide the key elsewhere
                change = f"{rows}={json.dumps({cell.label: {'warmup_epochs': shorter}}, ensure_ascii=False)}"
            notes[key] = (
                f"{cell.label}: its warm-up takes {warmup} epochs and the training {epochs}, so its terms never reach "
                f"their full weight; set {key}, e.g. --set {shlex.quote(change)}"
            )
    return list(notes.values())


def _rows_with_warmup(recipe: Recipe, cell: PlannedTrial) -> str:
    """Returns the key of the rows that set a trial's warm-up: those of its pair if the pair does, else the recipe's."""
    networks = short_name(cell.teacher), short_name(cell.student)
    for index, pair in enumerate(recipe.pairs):
        names = short_name(pair.teacher or "-"), short_name(pair.student)
        if names == networks and "warmup_epochs" in pair.methods.get(cell.label, {}):
            return f"pairs.{index}.methods"
    return "methods"
