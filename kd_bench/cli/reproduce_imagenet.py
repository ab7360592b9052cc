"""``kd-bench reproduce imagenet``: Table 8 of the appendix, and the standard recipes of ImageNet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import (
    OUT,
    CohortSize,
    Data,
    Device,
    Devices,
    Format,
    Jobs,
    Nodes,
    Only,
    Out,
    RetryFailed,
    Set,
    Threads,
    Trials,
    Workers,
)
from kd_bench.utils.errors import UserError

#: Most students in one process of a smoke run: all of a teacher.
SMOKE_COHORT = 16


def reproduce_imagenet(
    budget: Annotated[
        str, typer.Option("--budget", help="full, or smoke: all parts for a few steps, minutes.")
    ] = "full",
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="TEACHER=FILE: weights that are not to be fetched.")
    ] = None,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    retry_failed: RetryFailed = False,
    workers: Workers = 2,
    devices: Devices = None,
    nodes: Nodes = None,
    format_: Format = "terminal",
) -> None:
    """Train all that is missing of Table 8 and the standard recipes, and print it beside what is published; resumes.

    With --budget smoke every method runs for a few steps on an image folder below --data, or else on generated images,
    into OUT/smoke: the real networks with random weights, which is no measurement but tells speed and memory.
    """
    from kd_bench.launch.scheduler import RunOptions, check_options
    from kd_bench.paper import imagenet as parts_of

    common.check_format(format_)
    common.check_budget(budget)
    smoke = budget == "smoke"
    if smoke:
        if trials is not None or weights:
            raise UserError("--budget smoke trains each student once, with random weights of its teacher, so --trials "
                            "and --weights must be left out")  # fmt: skip
        out, cohort_size, jobs = out / "smoke", max(cohort_size, SMOKE_COHORT), jobs or 1
    elif set_:
        raise UserError("--set is for --budget smoke; with other settings these would not be the published recipes")
    options = RunOptions(out, data, jobs, threads, device, cohort_size, retry_failed, (), workers, devices, nodes)
    if smoke:
        check_options(options)
        parts, images = parts_of.smoke(data, out, only or (), set_ or ())
        _say(f"smoke run on {images}; it measures no accuracy")
    else:
        files = _files(weights or ())
        common.locate(parts_of.IMAGENET, data)
        check_options(options)  # before anything is downloaded
        parts = parts_of.full(common.fetch, _say, files, only or (), trials)
    failed: dict[str, str] = {}
    for part in parts:
        lost = common.train(part.recipe, part.context, part.planned, options)
        failed |= lost
        summary = common.table([(part.recipe, part.context, part.planned)], options.out)
        if smoke:
            for line in parts_of.costs(part, options.out):
                _say(line)
            note = (
                f"Smoke run on {images}, teachers with random weights. It shows that every part runs, and no accuracy."
            )
            summary = summary.headed("smoke run, measures nothing", note)
        common.write(summary, format_)
    if failed:
        raise common.lost("reproduce imagenet", failed)


def _files(pairs: list[str] | tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not name or not file:
            raise UserError(f"--weights {pair}: should be TEACHER=FILE, e.g. resnet34.tv_in1k=resnet34.pth")
        found[name] = Path(file)
    return found


def _say(line: str) -> None:
    typer.echo(f"reproduce imagenet: {line}", err=True)
