"""``kd-bench status`` and ``kd-bench verify``: how far a recipe is, and whether what is there is whole."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, Data, Device, Method, Only, Out, RecipeName, Set, Trials
from kd_bench.utils.errors import RunFailed


def status(
    recipe: RecipeName,
    method: Method = None,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    everything: Annotated[bool, typer.Option("--all", help="List what is done, too.")] = False,
) -> None:
    """Show what of a recipe is done, running, waiting or failed; the exit code is 0 where all is done, else 1."""
    from kd_bench.trials.status import summary, trial_statuses

    read, _, planned = common.plan(recipe, only, trials, set_, method)
    found = trial_statuses(planned, out, read.name)
    listed = [one for one in found if everything or one.state != "done"]
    width = max((len(one.name) for one in listed), default=0)
    for one in listed:
        typer.echo(f"{one.state:7}  {one.trial}  {one.name:{width}}  {' '.join(one.about.split())}".rstrip())
    typer.echo(f"{read.name}: {summary(found)}")
    if any(one.state != "done" for one in found):
        sys.exit(1)


def verify(
    folder: Annotated[Path, typer.Argument(help="A results folder, or a recipe's in it.")] = OUT,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Measure every network again, too.")] = False,
    data: Data = None,
    device: Device = "cpu",
) -> None:
    """Check finished trials again: settings, metrics, checksums of weights, and on request accuracies."""
    from kd_bench.trials import integrity

    checked = [integrity.check(path) for path in integrity.trial_folders(folder)]
    faults = [fault for one in checked for fault in one.faults]
    if accuracy:
        sound = [one.path for one in checked if one.status == "done" and not one.faults]
        faults += [fault for path in sound if (fault := integrity.measure_again(path, data, device)) is not None]
    for fault in faults:
        typer.echo(fault)
    counts = Counter(one.status for one in checked)
    named = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    typer.echo(f"{folder}: {len(checked)} trials: {named}; {len(faults) or 'no'} fault{'s' * (len(faults) != 1)} found")
    if faults:
        raise RunFailed(f"{folder}: not all is as it was written")
