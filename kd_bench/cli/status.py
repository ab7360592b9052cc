"""``kd-bench status`` and ``kd-bench verify``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.utils.errors import RunFailed


def status(
    recipe: opt.RecipeName,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    everything: Annotated[bool, typer.Option("--all", help="Also list trials that are done.")] = False,
) -> None:
    """Show which trials of a recipe are done, running, waiting or failed. The exit code is 1 unless all are done."""
    from kd_bench import api
    from kd_bench.trials.status import summary, trial_statuses

    planned = api.plan(recipe, methods=method, only=only, trials=trials, overrides=set_)
    statuses = trial_statuses(planned.planned, out, planned.recipe.name)
    listed = [status for status in statuses if everything or status.state != "done"]
    width = max((len(status.name) for status in listed), default=0)
    for status in listed:
        detail = " ".join(status.detail.split())
        typer.echo(f"{status.state:7}  {status.trial}  {status.name:{width}}  {detail}".rstrip())
    typer.echo(f"{planned.recipe.name}: {summary(statuses)}")
    if any(status.state != "done" for status in statuses):
        sys.exit(1)


def verify(
    folder: Annotated[Path, typer.Argument(help="A results folder, or the folder of a recipe in it.")] = opt.OUT,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Also measure every network again.")] = False,
    data: opt.Data = None,
    device: opt.Device = "cpu",
) -> None:
    """Verify finished trials: their settings, metrics and checksums of weights, and their accuracies if asked."""
    from kd_bench.trials import integrity

    checked = [integrity.check_trial(path) for path in integrity.trial_folders(folder)]
    faults = [fault for trial in checked for fault in trial.faults]
    if accuracy:
        sound = [trial.path for trial in checked if trial.status == "done" and not trial.faults]
        faults += filter(None, (integrity.check_accuracy(path, data, device) for path in sound))
    for fault in faults:
        typer.echo(fault)
    counts = Counter(trial.status for trial in checked)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    typer.echo(
        f"{folder}: {len(checked)} trials: {states}; {len(faults) or 'no'} fault{'s' * (len(faults) != 1)} found"
    )
    if faults:
        raise RunFailed(f"{folder}: some trials are damaged")
