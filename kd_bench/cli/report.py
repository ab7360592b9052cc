"""``kd-bench report``: one HTML page of what a results folder has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, Method, Out
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kd_bench.report.page import PagePart

Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="A recipe's file or name, several times if need be; left out: all that OUT has."),
]
Output = Annotated[Path, typer.Option("--output", help="The page to write.")]


def report(recipe: Recipes = None, method: Method = None, out: Out = OUT, output: Output = Path("report.html")) -> None:
    """Write all results as one HTML page: tables, statistics, curves, cost, and the trials behind every number."""
    from kd_bench.report.page import page
    from kd_bench.utils.files import write_atomic

    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; name a file, such as {output / 'report.html'}")
    found = parts(recipe, method, out)
    text = page(found)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from None
    trials = len({cell.trial_id for part in found for cell in part.cells})
    typer.echo(f"report: {trials} trials, {len(text.encode()) / 1e6:.2f} MB: {output}")


def parts(recipe: list[str] | None, method: list[str] | None, out: Path) -> list[PagePart]:
    """What recipes have in a results folder, or everything in it where none is named.

    Args:
        recipe: Files or names.
        method: Rows that ``--method`` adds to them.
        out: The results folder.

    Raises:
        UserError: Where there is nothing.
    """
    if not out.is_dir():
        raise UserError(f"--out: there is no folder {out}; kd-bench run makes one")
    if method and not recipe:
        raise UserError("--method: name the recipe that it is a row of, with --recipe")
    found = [_of_recipe(name, out, method) for name in recipe] if recipe else list(_of_folder(out))
    if not found:
        raise UserError(f"--out: there are no trials in {out}; kd-bench run puts some there")
    return found


def _of_recipe(name: str, out: Path, rows: list[str] | None = None) -> PagePart:
    """What a recipe plans, and has so far."""
    from kd_bench.report.page import PagePart
    from kd_bench.report.results_frame import read_results
    from kd_bench.trials.folder import check_all

    recipe, context, planned = common.plan(name, None, None, None, rows)
    folder = out / recipe.name
    check_all(planned, folder)
    summary = common.table([(recipe, context, planned)], out)
    frame = read_results(folder, planned)
    return PagePart(recipe.name, recipe.description, summary, frame, tuple(planned), folder, name, tuple(rows or ()))


def _of_folder(out: Path) -> Iterator[PagePart]:
    """Every folder of trials: by the recipe of its name as far as it has the same trials, else by the trials alone."""
    from kd_bench.report.page import PagePart
    from kd_bench.report.unplanned import trial_ids, trials_in_folder
    from kd_bench.trials.folder import TEACHERS

    known = packaged()
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and path.name != TEACHERS):
        there = trial_ids(folder)
        name = next((one for one in known.get(folder.name, ()) if _planned_ids(one) & there), None)
        if name is not None:
            part = _of_recipe(name, out)
            there -= {cell.trial_id for cell in part.cells}
            yield part
        rest = trials_in_folder(folder, there)
        if rest.cells:
            summary = rest.summary.in_families(common.families(cell.method for cell in rest.cells))
            title = f"{folder.name}: trials that the recipe, as it is now, does not plan" if name else folder.name
            yield PagePart(title, rest.about, summary, rest.frame, rest.cells, folder, "")


def packaged() -> dict[str, list[str]]:
    """The recipes that come with kd-bench, by the folder of their results."""
    from kd_bench.config.load import packaged_recipes, read_recipe

    names: dict[str, list[str]] = {}
    for one in packaged_recipes():
        names.setdefault(read_recipe(one).name, []).append(one)
    return names


def _planned_ids(name: str) -> set[str]:
    try:
        return {cell.trial_id for cell in common.plan(name, None, None, None)[2]}
    except UserError:  # e.g. teachers' weights that are not here
        return set()
