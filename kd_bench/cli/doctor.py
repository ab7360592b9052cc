"""``kd-bench doctor``."""

from __future__ import annotations

import typer

from kd_bench.cli import options as opt
from kd_bench.utils.errors import RunFailed


def doctor(out: opt.Out = opt.OUT, data: opt.Data = None) -> None:
    """Check the installation, devices, data sets and folders, and say how to repair what is missing."""
    from kd_bench.launch.doctor import examine

    sound = True
    for finding in examine(out, data):
        typer.echo(str(finding))
        sound = sound and finding.mark != "bad"
    if not sound:
        raise RunFailed("something above keeps kd-bench from working")
