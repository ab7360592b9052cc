"""``kd-bench table``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.report.summary import Summary


@opt.with_settings()
def table(
    recipe: opt.OptionalRecipe = None,
    published: Annotated[
        bool, typer.Option("--published", help="Without a recipe: print the paper's Tables 6 to 12.")
    ] = False,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    columns: opt.Columns = None,
    out: opt.Out = opt.OUT,
    format_: opt.Format = "terminal",
) -> None:
    """Print the table of a recipe's results so far, or of all results, or the published tables."""
    opt.check_format(format_)
    names = opt.parse_columns(columns)
    if published:
        from kd_bench.paper.published_tables import reprint

        if recipe is not None:
            raise UserError(f"--published: must stand without a recipe (it is {recipe!r}), whose table shows what is "
                            "published beside what was measured")  # fmt: skip
        options = {"--method": method, "--only": only, "--trials": trials, "--columns": columns, opt.SET_OPTIONS: set_}
        for name, value in options.items():
            if value is not None:
                raise UserError(f"--published prints the tables of the paper as they are, so {name} must be left out")
        sys.stdout.write(reprint(format_))
        return
    opt.check_out(out)
    if recipe is None:
        opt.refuse_without_recipe(method=method, only=only, trials=trials, set=set_)
        _print_all(out, names, format_)
        return
    from kd_bench import api
    from kd_bench.trials.missing_results import explain_missing
    from kd_bench.trials.recipe_file import find_recipe_in

    try:
        source = find_recipe_in(recipe, out)
    except UserError:
        part = None if method or only or trials or set_ else api.folder_part(recipe, out)
        if part is None:
            raise
        print_summary(api.with_columns(part, names).summary, format_)
        return
    planned = api.plan(source, methods=method, only=only, trials=trials, overrides=set_, results=out)
    print_summary(api.table([planned], out, names), format_)
    if missing := explain_missing(recipe, planned.recipe, planned.context, planned.planned, out):
        typer.echo(f"table: {missing}", err=True)


def _print_all(out: Path, columns: Sequence[str], format_: str) -> None:
    """Prints a table for each recipe that has results, below its name."""
    from kd_bench import api

    parts = api.report_parts(None, None, out, columns)
    if len(parts) > 1 and format_ not in ("terminal", "plain", "markdown"):
        names = ", ".join(dict.fromkeys(part.folder.name for part in parts))
        raise UserError(f"--format {format_}: one table only; name one of {names}, which have results in {out}")
    for number, part in enumerate(parts):
        if len(parts) > 1:
            heading = f"## {part.name}" if format_ == "markdown" else part.name
            typer.echo(f"{chr(10) * (number > 0)}{heading}\n")
        print_summary(part.summary, format_)


def print_summary(summary: Summary, format_: str) -> None:
    """Prints a table in a format that exists."""
    from kd_bench.report.summary_text import write_summary

    write_summary(summary, format_, sys.stdout)
