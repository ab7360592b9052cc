"""``kd-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.utils.errors import UserError


def report(
    recipe: opt.Recipes = None,
    method: opt.Method = None,
    out: opt.Out = opt.OUT,
    output: Annotated[Path, typer.Option("--output", help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write all results as one HTML page: tables, statistics, curves, cost, and the trials behind every number."""
    from kd_bench import api
    from kd_bench.report.page import page
    from kd_bench.utils.files import write_atomic

    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; name a file, such as {output / 'report.html'}")
    parts = api.report_parts(recipe, method, out)
    text = page(parts)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from None
    trials = len({cell.trial_id for part in parts for cell in part.cells})
    typer.echo(f"report: {trials} trials, {len(text.encode()) / 1e6:.2f} MB: {output}")
