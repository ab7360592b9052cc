"""``kd-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.option_types import path_option
from kd_bench.utils.text import count


@opt.with_settings()
def report(
    recipe: opt.Recipes = None,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    columns: opt.Columns = None,
    out: opt.Out = opt.OUT,
    output: Annotated[Path, path_option("--output", "The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write all results as one HTML page: tables, statistics, curves, cost, and the trials behind every number."""
    from kd_bench import api
    from kd_bench.report.page import page
    from kd_bench.utils.files import check_output, write_output

    check_output(output, "--output")
    if not recipe:
        opt.refuse_without_recipe(", with --recipe", only=only, trials=trials, set=set_)
    parts = api.report_parts(recipe, method, out, opt.parse_columns(columns), only=only, trials=trials, overrides=set_)
    for part in parts:
        if recipe and part.missing:
            typer.echo(f"report: {part.missing}", err=True)
    text = page(parts)
    write_output(output, text, "--output")
    number = len({cell.trial_id for part in parts for cell in part.cells})
    typer.echo(f"report: {count(number, 'trial')}, {len(text.encode()) / 1e6:.2f} MB: {output}")
