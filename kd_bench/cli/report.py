"""``kd-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.option_types import path_option
from kd_bench.utils.text import count


def report(
    recipe: opt.Recipes = None,
    method: opt.Method = None,
    columns: opt.Columns = None,
    out: opt.Out = opt.OUT,
    output: Annotated[Path, path_option("--output", "The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write all results as one HTML page: tables, statistics, curves, cost, and the trials behind every number."""
    from kd_bench import api
    from kd_bench.report.page import page
    from kd_bench.utils.files import check_output, write_output

    check_output(output, "--output")
    parts = api.report_parts(recipe, method, out, opt.parse_columns(columns))
    text = page(parts)
    write_output(output, text, "--output")
    trials = len({cell.trial_id for part in parts for cell in part.cells})
    typer.echo(f"report: {count(trials, 'trial')}, {len(text.encode()) / 1e6:.2f} MB: {output}")
