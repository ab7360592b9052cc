"""``kd-bench tune``."""

from __future__ import annotations

from typing import Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.cli.option_types import whole_number
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError


@opt.with_run_options()
@opt.with_settings()
def tune(
    recipe: opt.RecipeName,
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="<method>",
            help="Row to tune, or another row as [LABEL=]FILE.py:CLASS; repeatable, or with commas.",
            autocompletion=completion.methods,
        ),
    ],
    budget: Annotated[int, whole_number("--budget", "Tries for each row and pair.", 2, 1000)] = 20,
    batch: Annotated[int, whole_number("--batch", "Tries that are trained together.", 1, 64)] = 4,
    holdout: Annotated[
        int | None, whole_number("--holdout", "Training images to hold out, instead of the recipe's.", 2, 10**9)
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="<name=range>",
            help="Range of a hyper-parameter or of lr to search, e.g. temperature=1..16; repeatable.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="<key=value>",
            help="Only the pairs of a student or teacher, e.g. student=resnet8; repeatable.",
        ),
    ] = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Tune rows of a recipe on held-out images, and compare the settings that were found with the published ones."""
    from kd_bench import api
    from kd_bench.cli.run import train_and_print
    from kd_bench.config.load import read_recipe
    from kd_bench.config.selection import split_names
    from kd_bench.trials.recipe_file import find_recipe_in
    from kd_bench.tuning.search_space import read_ranges
    from kd_bench.tuning.tuner import TuningSettings

    opt.check_format(format_)
    source = find_recipe_in(recipe, options.out)
    rows = read_recipe(source).methods
    labels = list(dict.fromkeys(name for names in method for name in split_names(names, rows) if name))
    if not labels:
        raise UserError("--method: should name at least one row of the recipe")
    for condition in only or ():
        if condition.partition("=")[0].strip() not in ("student", "teacher"):
            raise UserError(
                f"--only {condition}: tune selects pairs, by student or teacher, e.g. --only student=resnet8; rows are "
                "named by --method, and the number of seeds by --trials"
            )
    added = [name for name in labels if ".py:" in name]
    labels = [next(iter(api.method_rows([name], "--method"))) if name in added else name for name in labels]
    settings = TuningSettings(labels, budget, batch, holdout, read_ranges(search or ()))
    planned = api.plan(source, methods=added, only=only, trials=trials, overrides=set_, data=options.data)

    def log(text: str) -> None:
        typer.echo(text, err=True)

    _, comparison = api.tune(planned, settings, options, log, trials)
    train_and_print(comparison, options, format_)
    if format_ == "csv":  # which has no notes below the table
        for note in comparison.recipe.notes:
            log(note)
