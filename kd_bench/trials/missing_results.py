"""Says why a recipe has no results where the user expects some. Imports nothing heavy."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.report.protocol import differences, first_few
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.plan_without_weights import plan_from_results
from kd_bench.trials.reader import TrialRecord, read_trial
from kd_bench.trials.results_folder import is_trial_id, out_option
from kd_bench.utils.text import count

#: Numbers of unplanned trials, and of planned ones, that are compared to name what differs.
_COMPARED = (20, 200)


def explain_missing(name: str, recipe: Recipe, context: str, selected: Sequence[PlannedTrial], out: Path) -> str | None:
    """Returns a sentence for a recipe without any result; None if it has some, or there is nothing to say.

    If nothing was trained yet, it says how to. Otherwise it is that of ``describe_unplanned``.

    Args:
        name: The recipe as the user named it.
        recipe, context: The recipe, with all overrides, and what error messages call it.
        selected: Those of its trials that are shown.
        out: The results folder.
    """
    folder = out / recipe.name
    if any(os.path.lexists(folder / cell.trial_id / "result.json") for cell in selected):
        return None
    if not _trials_in(folder):
        return f"no trial of {name} is in {out} yet; train with: kd-bench run {shlex.quote(name)}{out_option(out)}"
    return describe_unplanned(recipe, context, out)


def describe_unplanned(recipe: Recipe, context: str, out: Path) -> str | None:
    """Returns a sentence about finished trials in a recipe's folder that it does not plan; None if there are none.

    Most often the options of the run were left out. The sentence says in what the trials differ from planned ones.

    Args:
        recipe, context: The recipe, with all overrides, and what error messages call it.
        out: The results folder.
    """
    if recipe.name == TEACHERS:  # where the teachers of all recipes are
        return None
    folder, planned = out / recipe.name, {cell.trial_id: cell for cell in plan_from_results(recipe, context, out)}
    records = (read_trial(path) for path in _trials_in(folder) if path.name not in planned)
    others = [record for record in records if record.verdict == "done" and "method" in (record.settings or {})]
    if not others:
        return None
    difference = _difference(others, [cell.trial.settings() for cell in list(planned.values())[: _COMPARED[1]]])
    return (
        f"{folder} has {count(len(others), 'finished trial')} that the recipe does not plan ({difference}); repeat the "
        f"options of the run, or see all results: kd-bench table{out_option(out)}"
    )


def _trials_in(folder: Path) -> list[Path]:
    """Returns the folders of trials in the folder of a recipe."""
    try:
        return [path for path in sorted(folder.iterdir()) if is_trial_id(path.name)]
    except OSError:
        return []


def _difference(records: Sequence[TrialRecord], planned: Collection[dict[str, Any]]) -> str:
    """Returns in what most of some trials differ from the most similar planned ones."""
    texts = Counter(_difference_of_one(record.settings or {}, planned) for record in records[: _COMPARED[0]])
    text = texts.most_common(1)[0][0]
    return text if len(texts) == 1 else f"e.g. {text}"


def _difference_of_one(settings: dict[str, Any], planned: Collection[dict[str, Any]]) -> str:
    method = settings["method"]["name"]
    of_method = [other for other in planned if other["method"]["name"] == method]
    if not of_method:
        return f"method {method}"
    return first_few(min((list(differences(settings, other)) for other in of_method), key=len))
