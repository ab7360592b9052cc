"""``kd-bench export``: results and students for other programs. Nothing is uploaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.option_types import path_option
from kd_bench.cli.targets import trial_path
from kd_bench.utils.errors import UserError
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.trials.folder import TrialFolder

export_app = typer.Typer(
    help="Write results as CSV, or a student with its model card.", cls=CommandGroup, rich_markup_mode=None
)


@export_app.command("csv")
@opt.with_settings("batch_size", "lr")  # --epochs has another meaning here
def export_csv(
    recipe: opt.Recipes = None,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    epochs: Annotated[bool, typer.Option("--epochs", help="Write a line for each epoch of each trial.")] = False,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Write a line for each attack that kd-bench attack made on a trial.")
    ] = False,
    out: opt.Out = opt.OUT,
    output: Annotated[Path | None, path_option("--output", "File to write. By default, print.")] = None,
) -> None:
    """Write all results as CSV, one line per trial: its settings, its accuracies in percent, its cost."""
    from kd_bench import api
    from kd_bench.report import csv_export
    from kd_bench.utils.files import write_output

    if epochs and attacks:
        raise UserError("--epochs and --attacks exclude each other; write two files")
    if not recipe:
        opt.refuse_without_recipe(", with --recipe", only=only, trials=trials, set=set_)
    results = api.report_parts(recipe, method, out, only=only, trials=trials, overrides=set_)
    parts = [(part.folder.name, part.folder, part.cells) for part in results]
    lines = "epochs" if epochs else "attacks" if attacks else "trials"
    table = {"epochs": csv_export.epochs, "attacks": csv_export.attacks, "trials": csv_export.trials}[lines](parts)
    left_out = (f"{sentence}; left out" for part in results for sentence in part.left_out)
    missing = (part.missing for part in results if recipe and part.missing)
    for problem in (*table.problems, *left_out, *missing):
        typer.echo(f"export: {problem}", err=True)
    if output is None:
        sys.stdout.write(table.text)
        return
    write_output(output, table.text, "--output")
    typer.echo(f"export: {count(table.lines, lines.removesuffix('s'))}: {output}")


@export_app.command("card")
@opt.with_settings()
def export_card(
    trial: Annotated[str, typer.Argument(help="A finished trial: its folder or its id (see export csv).")],
    output: Annotated[Path, path_option("--output", "Folder to write into.")],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="<recipe>",
            help="A recipe that has the trial, for the command in the model card; repeatable. By default, a packaged "
            "recipe that has it.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    method: opt.Method = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    data: opt.Data = None,
) -> None:
    """Write a student as a folder that timm and the Hugging Face hub read: weights, configuration and model card."""
    from kd_bench.config.trial import Trial
    from kd_bench.data import registry as datasets
    from kd_bench.methods import _registry as methods
    from kd_bench.report.model_card import CardSubject, model_card
    from kd_bench.trials.folder import TrialFolder
    from kd_bench.trials.hub_export import export_student
    from kd_bench.trials.integrity import check_trial
    from kd_bench.trials.reader import read_trial, trial_settings
    from kd_bench.utils.files import write_atomic

    if not recipe:
        opt.refuse_without_recipe(", with --recipe", trials=trials, set=set_)
    folder = TrialFolder(trial_path(trial, out).absolute())
    record = read_trial(folder.path)
    if record.is_damaged:
        raise UserError(record.advice)
    if record.verdict != "done" or record.result is None or not record.has_weights:
        raise UserError(f"{folder.path}: has no finished student; see: kd-bench status RECIPE")
    settings = trial_settings(record)
    if not isinstance(settings, Trial):
        raise UserError(f"{folder.path}: is no student that was trained here")
    if faults := check_trial(folder.path).faults:
        raise UserError(faults[0])
    result, environment = record.result, record.environment
    command = _training_command(folder, out, recipe, method, trials, set_) or environment.get("command") or ""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} is no folder, and none can be made: {error.strerror}") from None
    exported = export_student(folder, settings, result, output, data)
    info, spec = methods.describe(settings.method.name), datasets.spec(settings.dataset.name)
    subject = CardSubject(
        folder=folder.path,
        trial=settings,
        result=result,
        environment=environment,
        method=info.doc.partition("\nArgs:\n")[0].strip(),
        dataset=spec.title,
        hub=spec.hub,
        input_description=exported.input_description,
        loading_code=exported.loading_code,
        training_command=command,
        kept_layers=[(layer.name, layer.description, layer.parameters) for layer in exported.kept_layers],
        loads_in_timm=exported.loads_in_timm,
    )
    write_atomic(output / "README.md", model_card(subject))
    typer.echo(f"export: {', '.join((*exported.files, 'README.md'))}: {output}")
    typer.echo("Before you share it, add a license: to the top of README.md; nothing was uploaded.")


def _training_command(
    folder: TrialFolder,
    out: Path,
    recipes: list[str] | None,
    methods: list[str] | None,
    trials: int | None,
    overrides: list[str] | None,
) -> str:
    """Returns the command that trains a trial again with a recipe that plans it; empty if there is none."""
    from kd_bench import api
    from kd_bench.config.load import recipes_by_folder
    from kd_bench.report.trial_data import training_command
    from kd_bench.trials.recipe_file import find_recipe_in

    results = folder.path.parents[1]
    for name in recipes or recipes_by_folder().get(folder.path.parent.name, []):
        try:
            source = find_recipe_in(name, out)
            planned = api.plan(source, methods=methods, trials=trials, overrides=overrides, results=results).planned
        except UserError:  # e.g. a plug-in is gone
            if recipes:
                raise
            continue
        for cell in planned:
            if cell.trial_id == folder.id:
                return training_command(cell, source, methods or (), trials=trials, overrides=overrides or ())
    if recipes:
        raise UserError(f"--recipe: {', '.join(recipes)} does not plan trial {folder.id}")
    return ""
