"""``kd-bench table``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.report.summary import Summary


def table(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's file, or the name of a packaged recipe.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Without a recipe: print the paper's Tables 6 to 12.")
    ] = False,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    format_: opt.Format = "terminal",
) -> None:
    """Print the table of a recipe's results so far, or the published tables."""
    opt.check_format(format_)
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
    from kd_bench.trials.folder import check_settings_of

    planned = api.plan(recipe, methods=method, only=only, trials=trials, overrides=set_)
    check_settings_of(planned.planned, out / planned.recipe.name)
    print_summary(api.table([planned], out), format_)


def print_summary(summary: Summary, format_: str) -> None:
    """Prints a table in a format that exists."""
    from kd_bench.report.summary_text import write_summary

    write_summary(summary, format_, sys.stdout)
