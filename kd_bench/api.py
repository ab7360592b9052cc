"""Functions behind the command line, which notebooks can call as well. They neither parse nor print.

Functions import torch, pandas and other heavy packages themselves, because names can be listed and checked without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench import plan as planning
from kd_bench.config.load import merge, read_recipe, recipe_context, recipes_by_folder
from kd_bench.config.trial import Training
from kd_bench.data import registry as datasets
from kd_bench.launch import run_recipe
from kd_bench.launch.run_recipe import PlannedRecipe
from kd_bench.launch.run_recipe import summarise_recipes as table
from kd_bench.methods._added_rows import check_methods, check_without_teacher, method_rows
from kd_bench.trials.plan_without_weights import plan_from_results
from kd_bench.trials.results_folder import folder_name
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path

if TYPE_CHECKING:
    from rich.console import Console

    from kd_bench.config.recipe import Recipe
    from kd_bench.launch.options import RunOptions
    from kd_bench.launch.replay import Replay
    from kd_bench.models.cards import Card
    from kd_bench.report.summary import FolderResults, Summary
    from kd_bench.tuning.tuner import TunedRow, TuningSettings
    from kd_bench.utils.download import DownloadedFile


def plan(
    recipe: str | Mapping[str, Any],
    *,
    methods: Sequence[str] | None = None,
    only: Iterable[str] | None = None,
    trials: int | None = None,
    overrides: Iterable[str] | None = None,
    results: Path | None = None,
    data: Path | None = None,
) -> PlannedRecipe:
    """Reads a recipe and plans its trials.

    Args:
        recipe: A file, the name of a packaged recipe, or the content of a recipe.
        methods: Additional rows, as for ``method_rows``.
        only: Conditions that trials must match, each ``key=value[,value...]``.
        trials: Number of seeds; None for the recipe's.
        overrides: Settings that replace the recipe's, each ``key=value``.
        results: A results folder that is only read: weights of teachers and generated images that are not on this
            machine are taken to be those of its results. None for a run, which needs them.
        data: Folder of the data sets, which has the generated images; None for the default.

    Raises:
        UserError: If the recipe or one of the other arguments is invalid.
    """
    content = read_recipe(recipe, with_rows(recipe, methods, overrides), trials)
    in_file = not isinstance(recipe, Mapping)
    context = content.name if isinstance(recipe, Mapping) else recipe_context(recipe)
    if results is None:
        planned = planning.plan(content, context, only or (), data)
    else:
        planned = plan_from_results(content, context, results, only or (), data)
    return PlannedRecipe(content, context, planned, in_file=in_file)


def with_rows(
    recipe: str | Mapping[str, Any], methods: Sequence[str] | None, overrides: Iterable[str] | None
) -> list[str]:
    """Returns overrides that add rows to a recipe, followed by ``overrides``, which may change the new rows."""
    rows = method_rows(methods, "--method", read_recipe(recipe).methods) if methods else {}
    check_methods(rows.values(), "--method")
    return [*(f"methods.{label}.method={json.dumps(name)}" for label, name in rows.items()), *(overrides or ())]


def base_recipe(dataset: str) -> dict[str, Any]:
    """Returns the content that recipes of a data set share.

    Raises:
        UserError: If there is no such data set.
    """
    datasets.spec(dataset, "--dataset")
    name = f"{dataset}/base.yaml"
    return {"extends": name} if package_path("recipes", name).is_file() else {"dataset": {"name": dataset}}


def pair_recipe(
    name: str,
    dataset: str,
    teacher: str | None,
    student: str,
    methods: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    trials: int | None = None,
    overrides: Iterable[str] | None = None,
) -> Recipe:
    """Returns a recipe for one pair, with the settings that recipes of the data set share.

    Args:
        name, dataset: Names of the recipe and of the data set.
        teacher, student: Their networks; None for no teacher.
        methods: The rows, as in a recipe; None for the student alone.
        weights: File of the teacher's weights, or "published"; None trains the teacher.
        trials: Number of seeds; None for the usual number.
        overrides: Settings that replace those of the data set, each ``key=value``.

    Raises:
        UserError: If one of the arguments is invalid.
    """
    pairs = [{"teacher": teacher, "student": student}]
    content = base_recipe(dataset) | {"name": name, "pairs": pairs, "methods": methods or {"none": {}}}
    if weights is not None and teacher is not None:
        content["teachers"] = {teacher: {"weights": weights}}
    return read_recipe(content, overrides or (), trials)


def plan_comparison(
    dataset: str, teacher: str | None, student: str, methods: Iterable[str] | Mapping[str, Any], **settings: Any
) -> PlannedRecipe:
    """Plans a comparison of methods on one pair.

    Args:
        dataset, teacher, student: As for ``pair_recipe``.
        methods: As for ``method_rows``, or hyper-parameters by the label of the row, as in a recipe.
        **settings: ``data`` as for ``plan``, others as for ``pair_recipe``.
    """
    name, data = folder_name("compare", dataset, *filter(None, (teacher, student))), settings.pop("data", None)
    if isinstance(methods, Mapping):
        entries = {"none": {}, **methods}
    else:
        rows = {"none": "none"} | method_rows(methods, "--methods")
        check_methods(rows.values(), "--methods")
        entries = {label: {"method": method} for label, method in rows.items()}
    recipe = pair_recipe(name, dataset, teacher, student, entries, **settings)
    if teacher is None:
        check_without_teacher({label: row.method for label, row in recipe.methods.items()}, settings.get("weights"))
    for option, network in (("--teacher", teacher), ("--student", student)):
        if network is not None:
            planning.resolve_network(recipe, network, option)
    return PlannedRecipe(recipe, "compare", planning.plan(recipe, "compare", data=data), in_file=False)


def teacher_recipe(
    name: str,
    dataset: str,
    *,
    weights: str | None = None,
    trials: int | None = None,
    overrides: Iterable[str] | None = None,
) -> tuple[Recipe, str, str]:
    """Returns a recipe with the teacher ``name``, the full name of its network, and a context for errors.

    The arguments are those of ``pair_recipe``. The settings that the data set's recipe has for teachers become those of
    the recipe itself, so that ``overrides`` change the training of the teacher: "epochs=2", not
    "teacher_training.epochs=2".
    """
    from kd_bench.trials.folder import TEACHERS

    recipe = pair_recipe(TEACHERS, dataset, name, name, weights=weights)
    training = {key: value for key, value in recipe.teacher_training.items() if key in Training.model_fields}
    others = {key: value for key, value in recipe.teacher_training.items() if key not in training}
    content = merge(recipe.model_dump(mode="json"), training) | {"teacher_training": others}
    recipe = read_recipe(content, overrides or (), trials)
    return recipe, planning.resolve_network(recipe, name, f"teacher {name}"), f"teacher {name}"


def plan_teachers(name: str, dataset: str, **settings: Any) -> PlannedRecipe:
    """Plans the training of a teacher, once per seed; ``settings`` are those of ``teacher_recipe``."""
    recipe, model, context = teacher_recipe(name, dataset, **settings)
    return PlannedRecipe(recipe, context, planning.plan_teachers(recipe, model, context))


def fetch_weights(card: Card) -> DownloadedFile:
    """Downloads the weights that a card names, with a progress bar on standard error.

    Raises:
        UserError: If the card names no weights.
        RunFailed: If no mirror has them.
    """
    from kd_bench.launch.progress_display import download_bar
    from kd_bench.models import pretrained

    with download_bar(card.name) as progress:
        return pretrained.fetch(card, progress)


def run(recipe: PlannedRecipe, options: RunOptions, console: Console | None = None) -> tuple[Summary, dict[str, str]]:
    """Trains the missing trials. Returns the table, and why trials have no result, by the trial's identity.

    The progress is shown on ``console``, by default on standard error.

    Raises:
        UserError: If the images are missing or an option is invalid.
    """
    datasets.locate(recipe.recipe.dataset, options.data)
    failed = run_recipe.train(recipe, options, console=console)
    return table([recipe], options.out), failed


def replay(trial: Path, options: RunOptions, weights: Path | None = None) -> Replay:
    """Trains a kept trial again and compares the two trainings, see ``kd_bench.launch.replay``.

    Args:
        trial: Folder of a finished trial.
        options: How to train it, and where.
        weights: File of the teacher's weights, if the teacher was not trained by kd-bench.

    Raises:
        UserError: If there is nothing to train again, or images or weights are missing.
        RunFailed: If the training fails.
    """
    from kd_bench.launch import replay as replaying

    return replaying.replay(trial, options, weights)


def tune(
    recipe: PlannedRecipe,
    settings: TuningSettings,
    options: RunOptions,
    log: Callable[[str], None],
    seeds: int | None = None,
) -> tuple[list[TunedRow], PlannedRecipe]:
    """Tunes rows of a recipe, pair by pair, on held-out images, and plans the comparison with the published settings.

    Args:
        recipe: The recipe. Pairs without a selected trial are left out.
        settings: What to tune, and the budget.
        options: How to train the tries.
        log: Receives a line for each try.
        seeds: Number of seeds of the comparison; None for the recipe's.

    Returns:
        The tries, and the comparison, which is still to be trained.

    Raises:
        UserError: If a setting is invalid or images are missing.
        RunFailed: If a training fails for another reason than its loss.
    """
    from kd_bench.tuning import tuner

    content = tuner.holdout_recipe(recipe.recipe, settings, recipe.context)
    datasets.check(content.dataset, f"{recipe.context}: dataset")
    rows = tuner.rows_to_tune(content, tuner.selected_pairs(recipe.recipe, recipe.planned), settings)
    datasets.locate(content.dataset, options.data)
    for note in tuner.tuning_notes(content, rows, options.data):  # before hours of training, and not for each try
        log(note)
    tuned = [tuner.tune_row(content, pair, label, settings, options, log) for pair, label in rows]
    comparison = tuner.tuned_recipe(recipe.recipe, tuned, seeds)
    planned = planning.plan(comparison, comparison.name, data=options.data)
    return tuned, PlannedRecipe(comparison, comparison.name, planned, in_file=False, warned=True)


def report_parts(
    recipes: Iterable[str] | None,
    methods: Sequence[str] | None,
    out: Path,
    columns: Sequence[str] = (),
    **changes: Any,
) -> list[FolderResults]:
    """Returns the results in a folder, one part for each recipe.

    Args:
        recipes: Files or names; None for all results in the folder.
        methods: Additional rows of the recipes, as for ``method_rows``.
        out: The results folder.
        columns: Names of the columns, see ``kd_bench.report.columns``; none for the usual ones.
        **changes: ``only``, ``trials`` and ``overrides``, as for ``plan``.

    Raises:
        UserError: If there are no results, or no such column.
    """
    from kd_bench.report.columns import check_columns
    from kd_bench.report.image_sets import note_differences
    from kd_bench.trials.results_folder import check_results_folder

    check_columns(columns)
    check_results_folder(out)
    if methods and not recipes:
        raise UserError("--method: name the recipe that it is a row of, with --recipe")
    parts = [recipe_part(name, out, methods, **changes) for name in recipes] if recipes else list(_folder_parts(out))
    if not parts:
        raise UserError(f"--out: there are no trials in {out}; kd-bench run puts some there")
    return note_differences([with_columns(part, columns) for part in parts])


def with_columns(part: FolderResults, columns: Sequence[str]) -> FolderResults:
    """Returns results with the values of these columns, and of those that the page plots."""
    from kd_bench.report import column_cells, corruption_columns

    cells, others = [(part.folder, part.cells)], ("latency", *corruption_columns.READERS)
    return replace(part, summary=column_cells.with_columns(part.summary, cells, columns, others))


def recipe_part(name: str, out: Path, methods: Sequence[str] | None = None, **changes: Any) -> FolderResults:
    """Returns the results of a recipe so far.

    Args:
        name: A file, the name of a packaged recipe, or the name of a folder in ``out``, e.g. of a comparison.
        out: The results folder.
        methods: Additional rows, as for ``method_rows``.
        **changes: ``only``, ``trials`` and ``overrides``, as for ``plan``.

    Raises:
        UserError: If there is no such recipe or folder.
    """
    from kd_bench.trials.missing_results import explain_missing
    from kd_bench.trials.recipe_file import find_recipe_in

    try:
        recipe = find_recipe_in(name, out)
    except UserError:
        part = None if methods or any(changes.values()) else folder_part(name, out)
        if part is None:
            raise
        return part
    planned = plan(recipe, methods=methods, results=out, **changes)
    return replace(
        planned_part(planned, out),
        recipe=recipe,
        methods=tuple(methods or ()),
        trials=changes.get("trials"),
        overrides=tuple(changes.get("overrides") or ()),
        missing=explain_missing(name, planned.recipe, planned.context, planned.planned, out),
    )


def folder_part(name: str, out: Path) -> FolderResults | None:
    """Returns the results in the folder ``name`` of ``out``: those of the recipe that plans some of them, or all.

    None if there are none.
    """
    from kd_bench.report.unplanned_trials import trial_ids

    ids = trial_ids(out / name) if name and Path(name).name == name else set()
    if not ids:
        return None
    recipe = _recipe_of(out / name, ids)
    return recipe_part(recipe, out) if recipe else _unplanned_part(out / name, ids)


def _unplanned_part(folder: Path, ids: set[str]) -> FolderResults:
    """Returns the results of trials that no recipe plans."""
    from kd_bench.report.unplanned_trials import summarise_unplanned

    part = summarise_unplanned(folder, ids)
    families = run_recipe.method_families(cell.method for cell in part.cells)
    return replace(part, summary=part.summary.with_families(families))


def planned_part(part: PlannedRecipe, out: Path) -> FolderResults:
    """Returns the results of planned trials so far."""
    from kd_bench.report.results_frame import read_results
    from kd_bench.report.summary import FolderResults

    folder, planned = out / part.recipe.name, tuple(part.planned)
    summary, frame = table([part], out), read_results(folder, planned)
    return FolderResults(part.recipe.name, part.recipe.description, summary, frame, planned, folder)


def _folder_parts(out: Path) -> Iterator[FolderResults]:
    """Yields the results of each folder: those of the recipe that plans some of them, then the others."""
    from kd_bench.report.unplanned_trials import trial_ids
    from kd_bench.trials.folder import TEACHERS

    for folder in sorted(path for path in out.iterdir() if path.is_dir() and path.name != TEACHERS):
        ids = trial_ids(folder)
        if name := _recipe_of(folder, ids):
            part = recipe_part(name, out)
            ids -= {cell.trial_id for cell in part.cells}
            yield part
        others = _unplanned_part(folder, ids)
        if others.cells or others.left_out:
            title = f"{folder.name}: trials that the recipe, as it is now, does not plan" if name else folder.name
            yield replace(others, name=title)


def _recipe_of(folder: Path, ids: set[str]) -> str | None:
    """Returns the recipe that plans some of a folder's trials: a packaged one, or the one that is kept there."""
    from kd_bench.trials.recipe_file import recipe_file

    kept_recipe = recipe_file(folder.name, folder.parent)
    names = [*recipes_by_folder().get(folder.name, ()), *([str(kept_recipe)] if kept_recipe else [])]
    return next((name for name in names if _planned_ids(name, folder.parent) & ids), None)


def _planned_ids(name: str, out: Path) -> set[str]:
    try:
        return {cell.trial_id for cell in plan(name, results=out).planned}
    except UserError:  # e.g. a plug-in is gone
        return set()
