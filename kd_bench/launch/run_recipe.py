"""Trains the missing trials of recipes and makes the table of their results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kd_bench.config.training_notes import training_notes
from kd_bench.utils.errors import RunFailed, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from kd_bench.config.recipe import Recipe
    from kd_bench.config.trial import PlannedTrial
    from kd_bench.launch.options import RunOptions
    from kd_bench.report.summary import Summary


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe and its selected trials.

    Attributes:
        recipe: The recipe, with all overrides.
        context: Its file, or what error messages call it.
        planned: The selected trials, in the order of the table.
        in_file: Whether the recipe can be read from a file. Others are kept in the results folder.
        warned: Whether the notes about its warm-ups have been printed already.
    """

    recipe: Recipe
    context: str
    planned: list[PlannedTrial]
    in_file: bool = field(default=True, kw_only=True)
    warned: bool = field(default=False, kw_only=True)


def train(
    part: PlannedRecipe, options: RunOptions, title: str | None = None, console: Console | None = None
) -> dict[str, str]:
    """Trains the missing trials and shows the progress.

    Trials that are damaged, and trials whose teacher is damaged, are named and left as they are.

    Args:
        part, options: What to train, and how.
        title: Title of the progress display; None for the recipe's name.
        console: Where to show the progress; None for standard error.

    Returns:
        Why trials have no result, by the trial's identity.
    """
    from kd_bench.report import published_numbers
    from kd_bench.trials.recipe_file import write_recipe

    recipe = part.recipe
    for name in recipe.published_names():  # an error in these files must come before hours of training
        published_numbers.read(name, f"{part.context}: published")

    def keep_recipe() -> None:
        if not part.in_file and (note := write_recipe(recipe, options.out, part.planned, options.data)):
            print(f"{recipe.name}: {note}", file=sys.stderr)
        for note in () if part.warned else training_notes(recipe, part.planned):
            print(f"{recipe.name}: {note}", file=sys.stderr)

    return train_trials(recipe.name, part.planned, options, title, console, keep_recipe)


def train_trials(
    name: str,
    planned: Sequence[PlannedTrial],
    options: RunOptions,
    title: str | None = None,
    console: Console | None = None,
    before_training: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Trains the missing ones of some trials; the arguments and the result are those of ``train``.

    Args:
        name: Name of the folder in the results folder.
        planned: The trials.
        options, title, console: As for ``train``.
        before_training: Called in the first process when all options are known to be valid.
    """
    from kd_bench.estimate import history
    from kd_bench.launch.launcher import check_divisible, launcher_environment, world_size
    from kd_bench.launch.launcher_ranks import join_launcher
    from kd_bench.launch.options import check_options
    from kd_bench.launch.progress_display import ProgressDisplay
    from kd_bench.launch.scheduler import Scheduler
    from kd_bench.trials.status import split_damaged

    environment = launcher_environment()
    check_divisible(planned, world_size(options.devices, options.nodes, environment))
    check_options(options)
    launcher = join_launcher(environment, options.device)
    before_training()
    sound, damaged = split_damaged(planned, options.out, name)
    for sentence in damaged.values():
        print(f"{name}: left out: {sentence}", file=sys.stderr)
    outcome = Scheduler(name, options, ProgressDisplay(title or name, console), launcher).run(sound)
    if comparison := history.compare_with_estimate(sound, outcome.trained, options.out, name):
        print(comparison, file=sys.stderr)
    return damaged | outcome.failed


def training_failure(context: str, failed: Mapping[str, str]) -> RunFailed:
    """Returns the error for trials without a result. It names the first three reasons."""
    reasons = "; ".join(f"{trial}: {reason}" for trial, reason in list(failed.items())[:3]) + " ..." * (len(failed) > 3)
    count = "1 training has" if len(failed) == 1 else f"{len(failed)} trainings have"
    return RunFailed(f"{context}: {count} no result: {reasons}")


def summarise_recipes(parts: Sequence[PlannedRecipe], out: Path, columns: Sequence[str] = ()) -> Summary:
    """Makes one table of the results so far, with published numbers beside them.

    Args:
        parts: The recipes. The baseline and the published numbers are those of the first one.
        out: The results folder.
        columns: Names of the columns, see ``kd_bench.report.columns``; none for the usual ones.

    Raises:
        UserError: If there is no such column.
    """
    import pandas as pd

    from kd_bench.report import published_numbers
    from kd_bench.report.column_cells import with_columns
    from kd_bench.report.columns import check_columns
    from kd_bench.report.results_frame import read_results
    from kd_bench.report.summarise import summarise
    from kd_bench.report.untuned import mark_untuned

    check_columns(columns)
    first = parts[0]
    planned = [trial for part in parts for trial in part.planned]
    frames = [read_results(out / part.recipe.name, part.planned) for part in parts]
    summary = summarise(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0], first.recipe.baseline)
    summary = summary.with_families(method_families(trial.method for trial in planned))
    summary = mark_untuned(summary, planned)
    notes = dict.fromkeys(note for part in parts for note in part.recipe.notes)
    summary = replace(summary, footnotes=(*summary.footnotes, *notes))
    names = first.recipe.published_names()
    numbers = [published_numbers.read(name, f"{first.context}: published") for name in names]
    summary = published_numbers.compare(summary, planned, *numbers) if numbers else summary
    if not columns:
        return summary
    return with_columns(summary, [(out / part.recipe.name, part.planned) for part in parts], columns)


def method_families(names: Iterable[str]) -> dict[str, str]:
    """Returns the family of each method, e.g. "features"; methods that no longer exist are left out."""
    from kd_bench.methods import _registry as methods

    families: dict[str, str] = {}
    for name in dict.fromkeys(names):
        with contextlib.suppress(UserError):
            families[name] = methods.describe(name).family
    return families
