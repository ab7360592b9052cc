"""What commands do alike: reading a recipe, running it, printing its table."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.utils.errors import RunFailed, UserError, unknown

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.config.recipe import Recipe
    from kd_bench.config.trial import PlannedTrial
    from kd_bench.launch.process_group import Launch, Launched
    from kd_bench.launch.scheduler import RunOptions
    from kd_bench.models.cards import Card
    from kd_bench.report.table import Summary
    from kd_bench.utils.download import Fetched


#: Of ``kd-bench reproduce``.
BUDGETS = ("full", "smoke")


def plan(
    name: str,
    only: list[str] | None,
    trials: int | None,
    overrides: list[str] | None,
    methods: list[str] | None = None,
) -> tuple[Recipe, str, list[PlannedTrial]]:
    """A recipe by file or name, what errors call it, and its trials."""
    from kd_bench import plan as planning
    from kd_bench.config.load import find_recipe, read_recipe

    recipe = read_recipe(name, with_rows(name, methods, overrides), trials)
    context = str(find_recipe(name))
    return recipe, context, planning.plan(recipe, context, only or ())


def with_rows(recipe: str, methods: list[str] | None, overrides: list[str] | None) -> list[str]:
    """What changes a recipe: the rows that ``--method`` adds, and then ``--set``, which may so give them settings.

    Raises:
        UserError: As ``rows``.
    """
    from kd_bench.config.load import read_recipe

    if not methods:
        return overrides or []
    taken = read_recipe(recipe).methods
    added = [f"methods.{label}.method={json.dumps(name)}" for label, name in rows(methods, "--method", taken).items()]
    return added + (overrides or [])


def rows(methods: Iterable[str], context: str, taken: Container[str] = ()) -> dict[str, str]:
    """Methods by the label of their row.

    Args:
        methods: ``NAME``, ``FILE.py:CLASS`` or ``LABEL=`` either. A class has its name in snake case as a label.
        context: Where they were written, for the error.
        taken: Labels of other rows.

    Raises:
        UserError: For a label that is no word or that is taken.
    """
    found: dict[str, str] = {}
    for text in methods:
        label, equals, name = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]*", label):  # a path may have an equals sign, too
            label, name = _label(text), text
        if not re.fullmatch(r"[\w-]+", label) or not name:
            raise UserError(f"{context} {text}: should be a method's name, FILE.py:CLASS or LABEL=FILE.py:CLASS")
        if label in taken or found.get(label, name) != name:
            raise UserError(f"{context} {text}: there is a row {label!r} already; give it another label: LABEL={name}")
        found[label] = name
    return found


def _label(name: str) -> str:
    """``kd_loss`` for ``path/file.py:KDLoss``; a built-in name stays."""
    word = name.rpartition(":")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", word).lower() if ".py:" in name else word


def folder_name(*parts: str) -> str:
    """The name of a recipe that is made from the command line, from those of data sets and networks."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def base(dataset: str) -> dict[str, Any]:
    """What recipes of a data set share, for a recipe made from the command line."""
    from kd_bench.data import registry as datasets
    from kd_bench.utils.paths import package_path

    datasets.spec(dataset, "--dataset")
    name = f"{dataset}/base.yaml"
    return {"extends": name} if package_path("recipes", name).is_file() else {"dataset": {"name": dataset}}


def locate(dataset: Dataset, data: Path | None) -> None:
    """Makes sure that the images are there before anything is written."""
    from kd_bench.data import registry as datasets

    datasets.locate(dataset, datasets.data_dir(data))


def check_format(format_: str) -> None:
    """Makes sure that there is such a format."""
    from kd_bench.report.render import FORMATS

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")


def check_budget(budget: str) -> None:
    """Makes sure that there is such a budget of ``kd-bench reproduce``."""
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS, "--budget")


def fetch(card: Card) -> Fetched:
    """Fetches the weights that a card names, with a progress bar."""
    from kd_bench.launch.progress_display import download_bar
    from kd_bench.models import pretrained

    with download_bar(card.name) as progress:
        return pretrained.fetch(card, progress)


def run(recipe: Recipe, context: str, planned: list[PlannedTrial], options: RunOptions, format_: str) -> None:
    """Trains what is missing and prints the table; fails, afterwards, where a trial has no result."""
    check_format(format_)
    locate(recipe.dataset, options.data)
    failed = train(recipe, context, planned, options)
    write(table([(recipe, context, planned)], options.out), format_)
    if failed:
        raise lost(context, failed)


def train(recipe: Recipe, context: str, planned: list[PlannedTrial], options: RunOptions) -> dict[str, str]:
    """Trains what is missing, with a display; returns why trials have no result, by their identity."""
    from kd_bench.estimate import history
    from kd_bench.launch import process_group
    from kd_bench.launch.progress_display import Display
    from kd_bench.launch.scheduler import Scheduler, check_options
    from kd_bench.report import published_numbers

    if recipe.published is not None:
        published_numbers.read(
            recipe.published, f"{context}: published"
        )  # a wrong name is told before hours of training
    here = process_group.launched()
    process_group.check(planned, process_group.processes(options.devices, options.nodes, here))
    check_options(options)
    launch = _launch(options.device, here)
    outcome = Scheduler(recipe.name, options, Display(recipe.name), launch).run(planned)
    if compared := history.settle(planned, outcome.trained, options.out, recipe.name):
        print(compared, file=sys.stderr)
    return outcome.failed


@lru_cache(maxsize=1)
def _launch(device: str, here: Launched | None) -> Launch | None:
    """One for all recipes of a command."""
    from kd_bench.launch.process_group import stay_or_follow

    return stay_or_follow(device, here)


def lost(context: str, failed: dict[str, str]) -> RunFailed:
    """The error for trials without a result."""
    return RunFailed(f"{context}: {len(failed)} trainings have no result: {reasons(failed)}")


def reasons(failed: dict[str, str]) -> str:
    """The first few reasons in one line."""
    return "; ".join(f"{trial}: {reason}" for trial, reason in list(failed.items())[:3]) + " ..." * (len(failed) > 3)


def table(parts: Sequence[tuple[Recipe, str, list[PlannedTrial]]], out: Path) -> Summary:
    """One table of what recipes have so far, beside what is published of them.

    Args:
        parts: Recipes with what errors call them and their trials; baseline and published numbers are the first one's.
        out: The results folder.
    """
    import pandas as pd

    from kd_bench.report import published_numbers
    from kd_bench.report.results_frame import read_results
    from kd_bench.report.table import summarise

    recipe, context, _ = parts[0]
    frames = [read_results(out / one.name, planned) for one, _, planned in parts]
    summary = summarise(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0], recipe.baseline)
    summary = summary.in_families(families(cell.method for _, _, planned in parts for cell in planned))
    if recipe.published is None:
        return summary
    numbers = published_numbers.read(recipe.published, f"{context}: published")
    return published_numbers.compare(summary, [cell for _, _, planned in parts for cell in planned], numbers)


def families(methods: Iterable[str]) -> dict[str, str]:
    """What each method distils, "features" or "logits"; a method that is not there any more is left out."""
    from kd_bench.methods import registry

    found: dict[str, str] = {}
    for name in dict.fromkeys(methods):
        with contextlib.suppress(UserError):
            found[name] = registry.describe(name).family
    return found


def reprint(recipe: str | None, published: bool, format_: str) -> None:
    """Prints the paper's tables: what ``table`` does where it is given ``--published`` and no recipe."""
    from kd_bench.paper.published_tables import reprint as text

    if recipe is not None:
        raise UserError(f"--published: must stand without a recipe (it is {recipe!r}), whose table shows what is "
                        "published beside what was measured")  # fmt: skip
    if not published:
        raise UserError("table: name a recipe, or --published for the paper's tables; see: kd-bench list recipes")
    sys.stdout.write(text(format_))


def write(summary: Summary, format_: str) -> None:
    """Prints a table."""
    from kd_bench.report import render

    render.write(summary, format_, sys.stdout)
