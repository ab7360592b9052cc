"""``kd-bench status`` and ``kd-bench verify``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.option_types import path_argument
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.text import count


@opt.with_settings()
def status(
    recipe: opt.OptionalRecipe = None,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    everything: Annotated[bool, typer.Option("--all", help="Also list trials that are done.")] = False,
) -> None:
    """Show which trials of a recipe are done, running, waiting, failed or damaged. Exit code 1 unless all are done.

    Without a recipe, each recipe that has results is summarised, and trials that are done or waiting are not listed.
    """
    from kd_bench import api
    from kd_bench.trials.missing_results import explain_missing
    from kd_bench.trials.recipe_file import find_recipe_in
    from kd_bench.trials.status import summary, trial_statuses

    opt.check_out(out)
    missing = None
    if recipe is None:
        opt.refuse_without_recipe(method=method, only=only, trials=trials, set=set_)
        parts = [(part.name, part.folder.name, part.cells) for part in api.report_parts(None, None, out)]
    else:
        try:
            source = find_recipe_in(recipe, out)
        except UserError:  # the name of a folder whose trials no recipe plans, e.g. the tries of a tuning
            part = None if method or only or trials or set_ else api.folder_part(recipe, out)
            if part is None:
                raise
            parts = [(part.name, part.folder.name, part.cells)]
        else:
            planned = api.plan(source, methods=method, only=only, trials=trials, overrides=set_, results=out)
            parts = [(planned.recipe.name, planned.recipe.name, planned.planned)]
            missing = explain_missing(recipe, planned.recipe, planned.context, planned.planned, out)
    unlisted = set() if everything else {"done"} if recipe is not None else {"done", "waiting"}
    unfinished = False
    for name, folder, cells in parts:
        statuses = trial_statuses(cells, out, folder)
        listed = [status for status in statuses if status.state not in unlisted]
        width = max((len(status.name) for status in listed), default=0)
        for status in listed:
            detail = " ".join(status.detail.split())
            typer.echo(f"{status.state:7}  {status.trial}  {status.name:{width}}  {detail}".rstrip())
        typer.echo(f"{name}: {summary(statuses)}")
        unfinished |= any(status.state != "done" for status in statuses)
    if missing is not None:
        typer.echo(f"status: {missing}", err=True)
    if unfinished:
        sys.exit(1)


def verify(
    folder: Annotated[
        Path, path_argument("folder", "A results folder, or the folder of a recipe in it.", "KD_BENCH_OUT")
    ] = opt.OUT,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Also measure every network again.")] = False,
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Accept results whose weights were not kept.")
    ] = False,
    data: opt.Data = None,
    device: opt.Device = "cpu",
    workers: opt.Workers = opt.WORKERS,
) -> None:
    """Verify finished trials: their settings, metrics and checksums of weights.

    With --accuracy, also their accuracies, and all but the timing of what kd-bench evaluate has measured.
    """
    from kd_bench.evaluation.verify_evaluation import verify_evaluations
    from kd_bench.launch.devices import find_devices
    from kd_bench.trials import integrity
    from kd_bench.trials.images import differing_images
    from kd_bench.utils.allocator import keep_freed_memory

    if accuracy and without_weights:
        raise UserError("--accuracy measures the weights, so --without-weights must be left out")
    checked = [integrity.check_trial(path, not without_weights) for path in integrity.trial_folders(folder)]
    faults = [fault for trial in checked for fault in trial.faults]
    faults += differing_images(trial.path for trial in checked)
    if accuracy:
        keep_freed_memory()
        sound = [trial.path for trial in checked if trial.status == "done" and not trial.faults]
        chosen = find_devices(device)[0]
        faults += filter(None, (integrity.check_accuracy(path, data, chosen, workers) for path in sound))
        faults += verify_evaluations(sound, data, chosen, workers)
    for fault in faults:
        typer.echo(fault)
    counts = Counter(trial.status for trial in checked)
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    faults_text = count(len(faults), "fault") if faults else "no faults"
    typer.echo(f"{folder}: {count(len(checked), 'trial')}: {states}; {faults_text} found")
    if faults:
        raise RunFailed(f"{folder}: some trials are damaged")
