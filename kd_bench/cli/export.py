"""``kd-bench export``: results and students for other programs and other people. Nothing is sent anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, Data, Method, Out
from kd_bench.cli.report import Recipes, packaged, parts
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.trial import Trial
    from kd_bench.trials.folder import TrialFolder

export_app = typer.Typer(
    help="Write results as CSV, or a student with its model card.", no_args_is_help=True, rich_markup_mode=None
)


@export_app.command("csv")
def export_csv(
    recipe: Recipes = None,
    method: Method = None,
    epochs: Annotated[bool, typer.Option("--epochs", help="A line for each epoch of each trial.")] = False,
    out: Out = OUT,
    output: Annotated[Path | None, typer.Option("--output", help="File to write; left out: print it.")] = None,
) -> None:
    """Write all results as one tidy CSV, a line a trial: what it is, its accuracies in percent, its cost."""
    from kd_bench.report import csv_export
    from kd_bench.utils.files import write_atomic

    found = [(part.folder.name, part.folder, part.cells) for part in parts(recipe, method, out)]
    table = csv_export.epochs(found) if epochs else csv_export.trials(found)
    for problem in table.problems:
        typer.echo(f"export: {problem}", err=True)
    if output is None:
        sys.stdout.write(table.text)
        return
    try:
        write_atomic(output, table.text)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from None
    typer.echo(f"export: {table.lines} {'epochs' if epochs else 'trials'}: {output}")


@export_app.command("card")
def export_card(
    trial: Annotated[str, typer.Argument(help="A finished trial: its folder, or its identity (see export csv).")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write into.")],
    recipe: Recipes = None,
    method: Method = None,
    out: Out = OUT,
    data: Data = None,
) -> None:
    """Write a student as a folder that timm and the Hugging Face hub read: weights, configuration and model card."""
    from kd_bench.data import registry as datasets
    from kd_bench.methods import registry as methods
    from kd_bench.report.model_card import Subject, card
    from kd_bench.trials.hub_export import export
    from kd_bench.utils.files import read_json, write_atomic

    folder = _folder(trial, out)
    settings = _settings(folder)
    result = folder.result()
    if result is None or result["status"] != "done" or not folder.weights.is_file():
        raise UserError(f"{folder.path}: has no finished student; see: kd-bench status RECIPE")
    environment = read_json(folder.path / "environment.json") or {}
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} is no folder, and none can be made: {error.strerror}") from None
    exported = export(folder, settings, result, output, data)
    info, spec = methods.describe(settings.method.name), datasets.spec(settings.dataset.name)
    subject = Subject(
        folder=folder.path,
        trial=settings,
        result=result,
        environment=environment,
        method=info.doc.partition("\nArgs:\n")[0].strip(),
        dataset=spec.title,
        sees=exported.sees,
        loading=exported.loading,
        again=_again(folder, recipe, method) or str(environment.get("command", "")),
    )
    write_atomic(output / "README.md", card(subject))
    typer.echo(f"export: {', '.join((*exported.files, 'README.md'))}: {output}")
    typer.echo("Before you share it, add a license: to the top of README.md; nothing was uploaded.")


def _folder(trial: str, out: Path) -> TrialFolder:
    """The trial's folder, by itself or by its name.

    Raises:
        UserError: Where there is none, or several results folders' recipes have one of that name.
    """
    from kd_bench.trials.folder import TrialFolder

    path = Path(trial).expanduser()
    if (path / "trial.json").is_file():
        return TrialFolder(path.absolute())
    found = [one.parent for one in sorted(out.glob("*/*/trial.json")) if one.parent.name == trial]
    if not found:
        raise UserError(f"{trial}: is neither the folder of a trial nor the identity of one in {out}")
    return TrialFolder(found[0].absolute())


def _settings(folder: TrialFolder) -> Trial:
    from pydantic import ValidationError

    from kd_bench.config.trial import Trial

    folder.check()
    try:
        return Trial.model_validate_json((folder.path / "trial.json").read_bytes())
    except ValidationError:
        raise UserError(f"{folder.path}: is no student that was trained here") from None


def _again(folder: TrialFolder, recipe: list[str] | None, method: list[str] | None) -> str:
    """The command that trains it once more, by the recipe that plans it; empty where none is found."""
    from kd_bench.report.trial_data import TrialLocation, again

    for name in recipe or packaged().get(folder.path.parent.name, []):
        try:
            planned = common.plan(name, None, None, None, method)[2]
        except UserError:  # e.g. teachers' weights that are not here
            if recipe:
                raise
            continue
        cell = next((one for one in planned if one.trial_id == folder.id), None)
        if cell is not None:
            return again(TrialLocation(folder.path, cell, name, tuple(method or ())))
    if recipe:
        raise UserError(f"--recipe: {', '.join(recipe)} does not plan trial {folder.id}")
    return ""
