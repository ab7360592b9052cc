"""The command ``kd-bench``: its commands, and how errors end it.

Commands import torch and other heavy packages themselves, so that ``kd-bench --help`` starts quickly.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from kd_bench.cli.attack import attack
from kd_bench.cli.cache import cache_app
from kd_bench.cli.data import data_app
from kd_bench.cli.doctor import doctor
from kd_bench.cli.estimate import estimate
from kd_bench.cli.export import export_app
from kd_bench.cli.list import list_, show
from kd_bench.cli.new import new
from kd_bench.cli.report import report
from kd_bench.cli.reproduce import reproduce_app
from kd_bench.cli.run import compare, run
from kd_bench.cli.status import status, verify
from kd_bench.cli.table import table
from kd_bench.cli.teacher import teacher_app
from kd_bench.utils.errors import RunFailed, Terminated, UserError

app = typer.Typer(
    name="kd-bench",
    help="The benchmark suite for knowledge distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
for command in (attack, estimate, run, compare, table, report, status, new, verify, list_, show, doctor):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(teacher_app, name="teacher")
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(cache_app, name="cache")
app.add_typer(export_app, name="export")
app.add_typer(data_app, name="data")


def main() -> None:
    """Runs a command. An error that a user can cause is printed as one line on standard error."""
    try:
        app(standalone_mode=False)
    except (UserError, RunFailed) as error:
        _exit(str(error), 2 if isinstance(error, UserError) else 1)
    except Terminated:
        _exit("stopped by SIGTERM; the same command goes on from here", 143)
    except KeyboardInterrupt:
        _exit("stopped; the same command goes on from here", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        # Typer's errors about the command line have this method. Any other error is a bug and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        _exit(f"{error.format_message()}{_value_of(error)}", getattr(error, "exit_code", 2))


def _value_of(error: Any) -> str:
    """Returns the value of the option that an error is about, because typer leaves it out."""
    options = getattr(getattr(error, "param", None), "opts", ())
    values = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option in options]
    return f" (it is {values[-1]!r})" if values else ""


def _exit(message: str, code: int) -> None:
    typer.echo(f"kd-bench: {' '.join(message.split())}", err=True)
    sys.exit(code)
