"""``kd-bench doctor``."""

from __future__ import annotations

import typer

from kd_bench.cli import options as opt
from kd_bench.cli import terminal
from kd_bench.utils.errors import RunFailed


def doctor(out: opt.Out = opt.OUT, data: opt.Data = None) -> None:
    """Check the installation, devices, data sets and folders, and say how to repair what is missing."""
    from kd_bench.launch.doctor import examine

    marks, columns = set(), terminal.columns()
    for finding in examine(out, data):
        typer.echo(terminal.fit(str(finding), columns, hang=7))
        marks.add(finding.mark)
    if "bad" in marks:
        raise RunFailed("something above keeps kd-bench from working")
    notes = "; what the notes name is needed by some recipes or options only" if "note" in marks else ""
    typer.echo(terminal.fit(f"kd-bench works on this machine{notes}.", columns, hang=0))
