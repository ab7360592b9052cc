"""``kd-bench table``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.report.summary import Summary


@opt.with_settings()
def table(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's file, the name of a packaged recipe, or the name of a comparison in the results folder.",
            autocompletion=completion.recipes,
        ),
    ] = None,
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
    """Print the table of a recipe's results so far, or the published tables."""
    opt.check_format(format_)
    names = opt.parse_columns(columns)
    if published or recipe is None:
        from kd_bench.paper.published_tables import reprint

        if recipe is not None:
            raise UserError(f"--published: must stand without a recipe (it is {recipe!r}), whose table shows what is "
                            "published beside what was measured")  # fmt: skip
        if not published:
            raise UserError("table: name a recipe, or --published for the paper's tables; see: kd-bench list recipes")
        sys.stdout.write(reprint(format_))
        return
    from kd_bench import api
    from kd_bench.trials.recipe_file import find_recipe_in

    try:
        source = find_recipe_in(recipe, out)
    except UserError:
        part = None if method or only or trials or set_ else api.folder_part(recipe, out)
        if part is None:
            raise
        print_summary(api.with_columns(part, names).summary, format_)
        return
    planned = api.plan(source, methods=method, only=only, trials=trials, overrides=set_)
    print_summary(api.table([planned], out, names), format_)


def print_summary(summary: Summary, format_: str) -> None:
    """Prints a table in a format that exists."""
    from kd_bench.report.summary_text import write_summary

    write_summary(summary, format_, sys.stdout)
