"""What commands do alike: reading a recipe, running it, printing its table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.errors import RunFailed, unknown

if TYPE_CHECKING:
    from kd_bench.recipe import Dataset, Planned, Recipe
    from kd_bench.report.table import Summary
    from kd_bench.runner.run import Options


def plan(
    name: str, only: list[str] | None, trials: int | None, overrides: list[str] | None
) -> tuple[Recipe, str, list[Planned]]:
    """A recipe by file or name, what errors call it, and its trials."""
    from kd_bench.reading import find_recipe, read_recipe
    from kd_bench.runner import plan as planning

    recipe = read_recipe(name, overrides or (), trials)
    where = str(find_recipe(name))
    return recipe, where, planning.plan(recipe, where, only or ())


def base(dataset: str) -> dict[str, Any]:
    """What recipes of a data set share, for a recipe made from the command line."""
    from kd_bench.data import registry as datasets
    from kd_bench.resources import share

    datasets.spec(dataset, "--dataset")
    name = f"{dataset}/base.yaml"
    return {"extends": name} if share("recipes", name).is_file() else {"dataset": {"name": dataset}}


def locate(dataset: Dataset, data: Path | None) -> None:
    """Makes sure that the images are there before anything is written."""
    from kd_bench.data import registry as datasets

    datasets.locate(dataset, datasets.data_dir(data))


def check_format(format_: str) -> None:
    """Makes sure that there is such a format."""
    from kd_bench.report.formats import FORMATS

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")


def run(recipe: Recipe, where: str, planned: list[Planned], options: Options, format_: str) -> None:
    """Trains what is missing and prints the table; fails, afterwards, where a trial has no result."""
    check_format(format_)
    locate(recipe.dataset, options.data)
    failed = train(recipe, where, planned, options)
    write(table([(recipe, where, planned)], options.out), format_)
    if failed:
        raise lost(where, failed)


def train(recipe: Recipe, where: str, planned: list[Planned], options: Options) -> dict[str, str]:
    """Trains what is missing, with a display; returns why trials have no result, by their identity."""
    from kd_bench.report import published
    from kd_bench.runner.display import Display
    from kd_bench.runner.run import Runner, prepare

    if recipe.published is not None:
        published.read(recipe.published, f"{where}: published")  # a wrong name is told before hours of training
    prepare(options)
    return Runner(recipe.name, options, Display(recipe.name)).run(planned).failed


def lost(where: str, failed: dict[str, str]) -> RunFailed:
    """The error for trials without a result."""
    return RunFailed(f"{where}: {len(failed)} trainings have no result: {reasons(failed)}")


def reasons(failed: dict[str, str]) -> str:
    """The first few reasons in one line."""
    return "; ".join(f"{trial}: {reason}" for trial, reason in list(failed.items())[:3]) + " ..." * (len(failed) > 3)


def table(parts: Sequence[tuple[Recipe, str, list[Planned]]], out: Path) -> Summary:
    """One table of what recipes have so far, beside what is published of them.

    Args:
        parts: Recipes with what errors call them and their trials; baseline and published numbers are the first one's.
        out: The results folder.
    """
    import pandas as pd

    from kd_bench.report import published
    from kd_bench.report.frame import read_results
    from kd_bench.report.table import summarise

    recipe, where, _ = parts[0]
    frames = [read_results(out / one.name, planned) for one, _, planned in parts]
    summary = summarise(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0], recipe.baseline)
    if recipe.published is None:
        return summary
    numbers = published.read(recipe.published, f"{where}: published")
    return published.compare(summary, [cell for _, _, planned in parts for cell in planned], numbers)


def write(summary: Summary, format_: str) -> None:
    """Prints a table."""
    from kd_bench.report import formats

    formats.write(summary, format_, sys.stdout)
