"""All commands of ``kd-bench``. Commands import torch and other heavy packages themselves, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from kd_bench import __version__
from kd_bench.cli.attack import attack
from kd_bench.cli.cache import cache_app
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.data import data_app
from kd_bench.cli.doctor import doctor
from kd_bench.cli.estimate import estimate
from kd_bench.cli.evaluate import evaluate
from kd_bench.cli.export import export_app
from kd_bench.cli.list import list_, show
from kd_bench.cli.new import new
from kd_bench.cli.replay import replay
from kd_bench.cli.report import report
from kd_bench.cli.reproduce import reproduce_app
from kd_bench.cli.run import compare, run
from kd_bench.cli.status import status, verify
from kd_bench.cli.table import table
from kd_bench.cli.teacher import teacher_app
from kd_bench.cli.tune import tune

app = typer.Typer(
    name="kd-bench",
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kd-bench {__version__}")
        raise typer.Exit


@app.callback()
def kd_bench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The benchmark suite for knowledge distillation."""


for command in (
    run,
    compare,
    table,
    report,
    status,
    list_,
    show,
    doctor,
    estimate,
    new,
    evaluate,
    attack,
    tune,
    replay,
    verify,
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(teacher_app, name="teacher")
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(cache_app, name="cache")
app.add_typer(export_app, name="export")
app.add_typer(data_app, name="data")
