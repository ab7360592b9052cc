"""Says which settings of a recipe's trainings have no effect, because they are short. Imports nothing heavy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable

from kd_bench.config.network_names import short_name
from kd_bench.config.optimizer import StepSchedule
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial


def training_notes(recipe: Recipe, planned: Iterable[PlannedTrial]) -> list[str]:
    """Returns sentences about warm-ups and schedules that are longer than the training, with what changes them.

    Args:
        recipe: The recipe.
        planned: Trials of its rows.
    """
    cells = list(planned)
    return [*_warmup_notes(recipe, cells), *_schedule_notes(cells)]


def _warmup_notes(recipe: Recipe, planned: Iterable[PlannedTrial]) -> list[str]:
    """Returns a sentence for each row whose warm-up is longer than its training."""
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


def _schedule_notes(planned: Iterable[PlannedTrial]) -> list[str]:
    """Returns a sentence for each schedule of steps that all lie behind the last epoch, with the rows that have it."""
    rows: dict[tuple[int, tuple[int | float, ...]], dict[str, None]] = {}
    for cell in planned:
        schedule, epochs = cell.trial.schedule, cell.trial.epochs
        if isinstance(schedule, StepSchedule) and schedule.milestones and min(schedule.milestones) >= epochs > 1:
            rows.setdefault((epochs, schedule.milestones), {})[cell.label] = None
    return [
        f"{', '.join(labels)}: the learning rate never drops, because the training takes {epochs} epochs and "
        f"schedule.milestones {'are' if len(milestones) > 1 else 'is'} {', '.join(map(str, milestones))}; fractions of "
        "all epochs fit every length, e.g. --set schedule.milestones=[0.625,0.75,0.875]"
        for (epochs, milestones), labels in rows.items()
    ]


def _rows_with_warmup(recipe: Recipe, cell: PlannedTrial) -> str:
    """Returns the key of the rows that set a trial's warm-up: those of its pair if the pair does, else the recipe's."""
    networks = short_name(cell.teacher), short_name(cell.student)
    for index, pair in enumerate(recipe.pairs):
        names = short_name(pair.teacher or "-"), short_name(pair.student)
        if names == networks and "warmup_epochs" in pair.methods.get(cell.label, {}):
            return f"pairs.{index}.methods"
    return "methods"
