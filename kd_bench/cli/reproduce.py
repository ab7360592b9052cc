"""``kd-bench reproduce``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.table import print_summary
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError

reproduce_app = typer.Typer(help="Reproduce the paper's tables.", cls=CommandGroup, rich_markup_mode=None)

Budget = Annotated[str, typer.Option("--budget", help="full, or smoke: all parts for a few batches, in minutes.")]

TrainTeachers = Annotated[
    bool, typer.Option("--train-teachers", help="Train the teachers instead of fetching their weights.")
]

_OPTIONS = ("out", "data", "jobs", "threads", "device", "cohort_size", "retry_failed")


@reproduce_app.command("imagenet")
@opt.with_run_options(*_OPTIONS, "workers", "devices", "nodes")
def reproduce_imagenet(
    budget: Budget = "full",
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="TEACHER=FILE: weights that are not fetched; can be repeated.")
    ] = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Train the missing trials of Table 8 and of the standard recipes, and print them beside published numbers.

    A stopped run continues. --budget smoke trains the real networks for a few steps, with random teachers, on a folder
    of images below --data or on generated images. It writes to OUT/smoke and shows speed and memory, but no accuracy.
    """
    if budget == "smoke" and (trials is not None or weights):
        raise UserError("--budget smoke trains each student once, with random weights of its teacher, so --trials "
                        "and --weights must be left out")  # fmt: skip
    if budget == "full" and set_:
        raise UserError("--set is for --budget smoke; with other settings these would not be the published recipes")
    files = {}
    for pair in weights or ():
        name, _, file = pair.partition("=")
        if not name or not file:
            raise UserError(f"--weights {pair}: should be TEACHER=FILE, e.g. resnet34.tv_in1k=resnet34.pth")
        files[name] = Path(file)
    _reproduce("imagenet", budget, options, format_, only=only, trials=trials, overrides=set_, weights=files)


@reproduce_app.command("cifar")
@opt.with_run_options(*_OPTIONS)
def reproduce_cifar(
    budget: Budget = "full",
    train_teachers: TrainTeachers = False,
    only: opt.Only = None,
    trials: opt.Trials = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Train the missing trials of Table 6, teachers first, and print them beside published numbers.

    A stopped run continues. A teacher is trained if its published weights cannot be fetched. --budget smoke trains
    the methods of Table 6 on all 13 published pairs for a few batches. It writes to OUT/smoke and measures nothing.
    """
    _reproduce_cifar100("cifar", budget, train_teachers, only, trials, options, format_)


@reproduce_app.command("methods")
@opt.with_run_options(*_OPTIONS)
def reproduce_methods(
    budget: Budget = "full",
    train_teachers: TrainTeachers = False,
    only: opt.Only = None,
    trials: opt.Trials = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Train the missing trials of all methods on the 13 published pairs of CIFAR-100, and print them.

    Published numbers stand beside them. The rows of Table 6, which has five of the pairs, are the same trials as those
    of: kd-bench reproduce cifar. --budget smoke trains every method on every pair for a few batches. It writes to
    OUT/smoke and measures nothing.
    """
    _reproduce_cifar100("methods", budget, train_teachers, only, trials, options, format_)


def _reproduce_cifar100(
    name: str,
    budget: str,
    train_teachers: bool,
    only: list[str] | None,
    trials: int | None,
    options: RunOptions,
    format_: str,
) -> None:
    if budget == "smoke" and (trials is not None or train_teachers):
        raise UserError("--budget smoke trains each teacher and each student once, so --trials and "
                        "--train-teachers must be left out")  # fmt: skip
    _reproduce(name, budget, options, format_, only=only, trials=trials, fetch=not train_teachers)


@reproduce_app.command("robustness")
@opt.with_run_options(*_OPTIONS)
def reproduce_robustness(
    budget: Budget = "full",
    attacks: opt.Attacks = None,
    images: opt.AttackImages = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    *,
    options: RunOptions,
    format_: opt.Format = "terminal",
) -> None:
    """Train and attack the missing networks of Tables 7 and 9 to 12, and print them beside published numbers.

    A stopped run continues. A network in several tables is trained and attacked once. --budget smoke trains a small
    network for every row for a few batches. It writes to OUT/smoke and measures nothing.
    """
    if budget == "smoke" and trials is not None:
        raise UserError("--budget smoke trains each row once, so --trials must be left out")
    from kd_bench.cli.attack import log_progress

    _reproduce("robustness", budget, options, format_, only=only, trials=trials, attacks=attacks, images=images,
               report_progress=log_progress)  # fmt: skip


def _reproduce(name: str, budget: str, options: RunOptions, format_: str, fetch: bool = True, **settings: Any) -> None:
    from kd_bench import api
    from kd_bench.paper.reproduce import BUDGETS, Reproduction
    from kd_bench.report import render
    from kd_bench.report.published_robustness import render_tables

    opt.check_format(format_)
    opt.check_choice("budget", budget, BUDGETS, "--budget")

    def show(result: Any) -> None:
        if name != "robustness":
            print_summary(result, format_)
            return
        for index, table in enumerate(render_tables(result, format_)):
            typer.echo("\n" * (index > 0), nl=False)
            render.write([table], format_, sys.stdout)

    def log(line: str) -> None:
        typer.echo(f"reproduce {name}: {line}", err=True)

    chosen = {key: value for key, value in settings.items() if value is not None}
    Reproduction(name, options, log, fetch=api.fetch_weights if fetch else None, **chosen).run(budget, show)
