"""``kd-bench reproduce``: the tables of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import (
    OUT,
    CohortSize,
    Data,
    Device,
    Format,
    Jobs,
    Only,
    Out,
    RetryFailed,
    Threads,
    Trials,
)
from kd_bench.cli.reproduce_imagenet import reproduce_imagenet
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.launch.scheduler import RunOptions
    from kd_bench.paper.cifar import CifarPart

reproduce_app = typer.Typer(help="Reproduce the paper's tables.", no_args_is_help=True, rich_markup_mode=None)

#: Most students in one process of a smoke run: all of a pair, because starting a process takes longer than they do.
SMOKE_COHORT = 16


@reproduce_app.callback()
def _reproduce() -> None:
    """Reproduce the paper's tables."""


reproduce_app.command("imagenet")(reproduce_imagenet)


@reproduce_app.command("cifar")
def reproduce_cifar(
    budget: Annotated[
        str, typer.Option("--budget", help="full, or smoke: all parts on a few images, minutes.")
    ] = "full",
    train_teachers: Annotated[bool, typer.Option("--train-teachers", help="Do not fetch published weights.")] = False,
    only: Only = None,
    trials: Trials = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    retry_failed: RetryFailed = False,
    format_: Format = "terminal",
) -> None:
    """Train all that is missing of Table 6, teachers first, and print it beside the published one; resumes.

    Teachers are the published ones where their weights can be fetched, and are trained where not. With --budget smoke
    every method runs on all 13 published pairs for a few batches, into OUT/smoke, and nothing is measured.
    """
    from kd_bench.launch.scheduler import RunOptions, check_options
    from kd_bench.paper import cifar

    common.check_format(format_)
    common.check_budget(budget)
    smoke = budget == "smoke"
    if smoke:
        if trials is not None or train_teachers:
            raise UserError("--budget smoke trains each teacher and each student once, so --trials and "
                            "--train-teachers must be left out")  # fmt: skip
        parts, images = cifar.smoke(data, only or ())
        _say(f"smoke run on {images}; it measures nothing")
        options = RunOptions(out / "smoke", data, jobs, threads, device, max(cohort_size, SMOKE_COHORT), retry_failed)
        _run(parts, options, format_, images)
        return
    options = RunOptions(out, data, jobs, threads, device, cohort_size, retry_failed)
    read, _, _ = common.plan(cifar.TABLE6, only, trials, None)
    common.locate(read.dataset, data)
    check_options(options)  # before anything is downloaded
    _run(cifar.full(out, None if train_teachers else common.fetch, _say, only or (), trials), options, format_)


def _run(parts: list[CifarPart], options: RunOptions, format_: str, smoke_on: str | None = None) -> None:
    failed: dict[str, str] = {}
    for part in parts:
        failed |= common.train(part.recipe, part.context, part.planned, options)
    summary = common.table([(part.recipe, part.context, part.planned) for part in parts], options.out)
    if smoke_on is not None:
        recipe = parts[0].recipe
        note = (
            f"Smoke run on {smoke_on}: teachers and students see {recipe.dataset.train_images} training images "
            f"{recipe.epochs} times. It shows that every part runs and measures nothing."
        )
        summary = summary.headed("smoke run, measures nothing", note)
    common.write(summary, format_)
    if failed:
        raise common.lost("reproduce cifar", failed)


def _say(line: str) -> None:
    typer.echo(f"reproduce cifar: {line}", err=True)
