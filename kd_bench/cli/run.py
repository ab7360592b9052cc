"""``kd-bench run`` and ``kd-bench compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.table import print_summary
from kd_bench.launch.options import RunOptions

if TYPE_CHECKING:
    from kd_bench.launch.run_recipe import PlannedRecipe


@opt.with_run_options()
def run(
    recipe: opt.RecipeName,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Train the missing trials of a recipe and print its table."""
    from kd_bench import api

    planned = api.plan(recipe, methods=method, only=only, trials=trials, overrides=set_)
    train_and_print(planned, options, format_)


@opt.with_run_options()
def compare(
    dataset: Annotated[str, typer.Option("--dataset", help="The data set; see: kd-bench list datasets.")],
    teacher: Annotated[str, typer.Option("--teacher", help="Network of the teacher, or FILE.py:NAME.")],
    student: Annotated[str, typer.Option("--student", help="Network of the student, or FILE.py:NAME.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Methods or [LABEL=]FILE.py:CLASS, with commas between them.")
    ] = "kd,dkd,ikl_kd",
    weights: opt.Weights = None,
    trials: opt.Trials = 3,
    set_: opt.Set = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Compare methods on a pair of networks, with the published settings of the data set."""
    from kd_bench import api

    names = [name.strip() for name in methods.split(",") if name.strip()]
    planned = api.plan_comparison(dataset, teacher, student, names, weights=weights, trials=trials, overrides=set_)
    train_and_print(planned, options, format_)


def train_and_print(planned: PlannedRecipe, options: RunOptions, format_: str) -> None:
    """Trains the missing trials and prints the table.

    Raises:
        RunFailed: If a trial has no result, after the table was printed.
    """
    from kd_bench import api
    from kd_bench.launch.run_recipe import training_failure

    opt.check_format(format_)
    summary, failed = api.run(planned, options)
    print_summary(summary, format_)
    if failed:
        raise training_failure(planned.context, failed)
