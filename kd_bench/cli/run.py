"""``kd-bench run`` and ``kd-bench compare``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.cli.table import print_summary
from kd_bench.launch.options import RunOptions
from kd_bench.trials.results_folder import out_option
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.launch.run_recipe import PlannedRecipe


@opt.with_run_options()
@opt.with_settings()
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
    from kd_bench.trials.recipe_file import find_recipe_in

    source = find_recipe_in(recipe, options.out)
    planned = api.plan(source, methods=method, only=only, trials=trials, overrides=set_, data=options.data)
    train_and_print(planned, options, format_)
    if format_ == "terminal":
        _print_next(recipe, options, method=method, only=only, trials=[trials] if trials else None, set=set_)


@opt.with_run_options()
@opt.with_settings()
def compare(
    dataset: opt.DatasetName,
    student: Annotated[
        str,
        typer.Option("--student", help="Network of the student, or FILE.py:NAME.", autocompletion=completion.networks),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="Network of the teacher, or FILE.py:NAME; only adversarial training needs none.",
            autocompletion=completion.networks,
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Methods or [LABEL=]FILE.py:CLASS, with commas between them.",
            autocompletion=completion.listed_methods,
        ),
    ] = "kd,dkd,ikl_kd",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="Row that the others are compared with, e.g. none; by default kd.",
            autocompletion=completion.methods,
        ),
    ] = None,
    weights: opt.Weights = None,
    trials: opt.ComparisonTrials = None,
    set_: opt.Set = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Compare methods on a pair of networks, with the published settings of the data set."""
    from kd_bench import api

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise UserError(f"--methods: should name at least one method, e.g. kd,ikl_kd (it is {methods!r})")
    if teacher is not None:
        opt.check_weights(weights)
    overrides = list(set_ or ())
    if baseline is not None:
        opt.check_choice("row", baseline, ["none", *api.method_rows(names, "--methods")], "--baseline")
        for text in overrides:
            if text.partition("=")[0].strip() == "baseline":
                raise UserError(f"--baseline {baseline}: --set {text} sets it, too; leave one of them out")
        overrides.append(f"baseline={json.dumps(baseline)}")
    planned = api.plan_comparison(
        dataset, teacher, student, names, weights=weights, trials=trials, overrides=overrides, data=options.data
    )
    train_and_print(planned, options, format_)
    if format_ == "terminal":
        _print_next(planned.recipe.name, options)


def _print_next(recipe: str, options: RunOptions, **selection: Sequence[Any] | None) -> None:
    """Prints the commands that show the trials of a run. ``selection`` is its options that say which trials these are.

    Each of them is a list of values, by the option's name.
    """
    words = [f" --{name} {shlex.quote(str(value))}" for name, values in selection.items() for value in values or ()]
    arguments = f"{shlex.quote(recipe)}{''.join(words)}{out_option(options.out)}"
    typer.echo(f"\nnext:\n  kd-bench table {arguments}\n  kd-bench report --recipe {arguments}", err=True)


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
