"""``kd-bench replay``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.option_types import path_option
from kd_bench.cli.targets import trial_path
from kd_bench.launch.options import RunOptions
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.launch.replay import Replay


@opt.with_run_options("out", "data", "device", "checkpoint_minutes", "eager", "workers")
def replay(
    trial: Annotated[
        str, typer.Argument(help="A finished trial: its folder, e.g. one of results/measured, or its id in OUT.")
    ],
    weights: Annotated[
        Path | None,
        path_option("--weights", "File of a teacher's weights, or of those that a training started from."),
    ] = None,
    *,
    options: RunOptions,
) -> None:
    """Train a kept trial again, in OUT/replays, and compare the two. Exit code 1 unless they agree."""
    from kd_bench import api

    outcome = api.replay(trial_path(trial, options.out), options, weights)
    for line in describe(outcome):
        typer.echo(line)
    if not outcome.agrees:
        sys.exit(1)


def describe(replay: Replay) -> list[str]:
    """Returns lines about the outcome of a replay."""
    assert replay.kept.metrics is not None
    kept, again = replay.top1
    epochs = count(replay.kept.metrics.rows, "epoch")
    lines = [f"{replay.kept.path}: {kept:.2f} % kept, {again:.2f} % trained again ({epochs})"]
    if replay.machine:
        lines.append(f"trained elsewhere: {'; '.join(replay.machine)}")
    else:
        lines.append("trained in the same place: processor, device, threads and versions are those of the kept trial")
    if replay.is_equal:
        weights = ", and so are the weights" if replay.same_weights else "; no checksum of the weights was kept"
        return [*lines, f"agrees: every number of every epoch is the same, to the last bit{weights}"]
    if replay.difference is None:
        lines.append("every number of every epoch is the same, but the weights are others")
    else:
        first = replay.difference
        values = " and ".join("nothing" if value is None else repr(value) for value in (first.kept, first.replayed))
        lines.append(f"the first difference is in epoch {first.epoch}: {first.column} is {values}")
    if not replay.machine:
        return [*lines, "differs: the same place should give the same bits"]
    interval, spread = replay.interval, replay.spread
    if interval is None:
        return [*lines, "not decided: one seed was kept, so the spread over seeds is not known"]
    verdict = "agrees: the accuracy is" if replay.agrees else "differs: the accuracy is not"
    seeds = f"{spread.n} kept seeds have {spread}"
    return [*lines, f"{verdict} in the range of another seed, {interval[0]:.2f} to {interval[1]:.2f} % ({seeds})"]
