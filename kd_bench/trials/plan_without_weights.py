"""Plans of recipes whose files are not all on this machine, for estimates and for results that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_bench import plan as planning
from kd_bench.config.data import Input
from kd_bench.config.load import merge
from kd_bench.config.recipe import Recipe
from kd_bench.config.teacher_start import TeacherStart, pop_start
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.config.validate import parse
from kd_bench.data import registry as datasets
from kd_bench.models import cards, pretrained
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.reader import read_trial, trial_settings
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import is_file

#: Hash of missing files.
UNKNOWN_HASH = "0" * 64


def plan_with_placeholders(
    recipe: Recipe, context: str, only: Iterable[str] = (), data: Path | None = None
) -> tuple[list[PlannedTrial], list[str]]:
    """Plans a recipe as ``kd_bench.plan.plan`` does, but does not need the weights of its teachers.

    Trials whose teacher's weights are missing have another identity than they will have in a run.

    Returns:
        The trials, and a sentence for each missing file of weights.

    Raises:
        UserError: As ``kd_bench.plan.plan``, except for missing weights.
    """
    teachers = [pair.teacher for pair in recipe.pairs if pair.teacher is not None]
    names = [planning.resolve_network(recipe, teacher, f"{context}: pairs") for teacher in teachers]
    missing = {name: reason for name in names if (reason := _missing_weights(recipe, name, context))}
    if not missing:
        return planning.plan(recipe, context, only, data), []
    training = _without_weights(recipe.teacher_training)
    general = {key: value for key, value in recipe.teacher_training.items() if key not in training}
    settings_by_teacher = {
        key: _without_weights(settings)
        if planning.resolve_network(recipe, key, f"{context}: teachers") in missing
        else merge(general, settings, keep_null=True)
        for key, settings in recipe.teachers.items()
    }
    trained = recipe.model_copy(update={"teachers": settings_by_teacher, "teacher_training": training})
    starts = {name: pop_start(planning.teacher_settings(recipe, name, context), context) for name in missing}
    planned = [_with_placeholder(trial, starts) for trial in planning.plan(trained, context, only, data)]
    return planned, list(missing.values())


def plan_from_results(
    recipe: Recipe, context: str, out: Path, only: Iterable[str] = (), data: Path | None = None
) -> list[PlannedTrial]:
    """Plans a recipe whose results are read. Files that are not here are those that the results were made with.

    A teacher whose weights are missing is looked for among the teachers of the results folder: by its network, data set
    and other settings. Generated images that are missing are those of this path in the results.

    Raises:
        UserError: As ``kd_bench.plan.plan``; for missing weights if the results folder does not have exactly one such
            teacher.
    """
    recipe = _with_images_of_results(recipe, context, out / recipe.name, data)
    planned, reasons = plan_with_placeholders(recipe, context, only, data)
    if not reasons:
        return planned
    trained = list(_read_settings(out / TEACHERS))
    teachers: dict[str, Trial | PretrainedTeacher] = {}
    for teacher in (cell.taught_by for cell in planned):
        if teacher is None or not _has_unknown_weights(teacher):
            continue
        matching = [other for other in trained if _description(other) == _description(teacher)]
        if len(matching) != 1:
            number = "several teachers" if matching else "no teacher"
            raise UserError(f"{'; '.join(reasons)}; {out / TEACHERS} has {number} of this kind")
        teachers[teacher.id] = matching[0]
    return [
        _with_teacher(cell, teachers[cell.taught_by.id]) if cell.taught_by and cell.taught_by.id in teachers else cell
        for cell in planned
    ]


def fill_image_checksums(recipe: Recipe, context: str, checksum: Callable[[str], str | None]) -> Recipe:
    """Returns the recipe with checksums of its generated images, where it has none.

    Args:
        recipe: The recipe.
        context: Its file, for error messages.
        checksum: Returns the checksum for the ``path`` of generated images; None if it is unknown.
    """

    def fill(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return [fill(part) for part in value] if isinstance(value, list) else value
        filled = {key: fill(inner) for key, inner in value.items()}
        images = filled.get("generated")
        if isinstance(images, dict) and "path" in images and images.get("sha256") is None:
            digest = checksum(images["path"])
            filled["generated"] = images if digest is None else {**images, "sha256": digest}
        return filled

    content = recipe.model_dump(mode="json")
    filled_content = fill(content)
    return recipe if filled_content == content else parse(Recipe, filled_content, context)


def without_missing_images(recipe: Recipe, context: str, data: Path | None) -> tuple[Recipe, list[str]]:
    """Returns the recipe with ``UNKNOWN_HASH`` for generated images that are missing, and a sentence for each file."""
    missing = {}

    def checksum(path: str) -> str | None:
        file = datasets.resolve_data_dir(data) / path
        if is_file(file):
            return None  # the plan reads it
        missing[file] = f"adversarial.generated: there is no file {file}"
        return UNKNOWN_HASH

    return fill_image_checksums(recipe, context, checksum), list(missing.values())


def _with_images_of_results(recipe: Recipe, context: str, folder: Path, data: Path | None) -> Recipe:
    """Returns the recipe with checksums of generated images that are missing here, from the trials in a folder."""
    digests: dict[str, set[str]] = {}

    def checksum(path: str) -> str | None:
        if is_file(datasets.resolve_data_dir(data) / path):
            return None  # the plan reads it
        for trial in () if digests else _read_settings(folder):
            images = trial.adversarial.generated if isinstance(trial, Trial) and trial.adversarial else None
            if images is not None and images.sha256 is not None:
                digests.setdefault(images.path, set()).add(images.sha256)
        checksums = digests.get(path, set())
        return next(iter(checksums)) if len(checksums) == 1 else None

    return fill_image_checksums(recipe, context, checksum)


def _read_settings(folder: Path) -> Iterator[Trial | PretrainedTeacher]:
    """Yields the settings of the trials in a folder."""
    for path in sorted(folder.glob("*")):
        with suppress(UserError):  # settings that are damaged, or of a newer version
            yield trial_settings(read_trial(path))


def _without_weights(settings: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in ("weights", *TeacherStart.model_fields)}


def _missing_weights(recipe: Recipe, name: str, context: str) -> str:
    """Returns why the weights of a teacher (a network's name) are missing; empty if they exist or will be trained."""
    settings = planning.teacher_settings(recipe, name, context)
    weights, start = settings.get("weights"), pop_start(settings, f"{context}: teachers.{name}")
    try:
        if isinstance(weights, str):
            planning.plan_pretrained_teacher(recipe.dataset, name, weights, f"{context}: teachers.{name}.weights")
        elif start.pretrained is not None:
            pretrained.initial_weights(name, start.pretrained, f"{context}: teachers.{name}.pretrained")
    except UserError as error:
        return str(error)
    return ""


def _with_placeholder(planned: PlannedTrial, missing: dict[str, TeacherStart]) -> PlannedTrial:
    """Gives a teacher whose weights are missing an unknown hash: of its own weights, or of those it starts from."""
    trained = planned.taught_by
    if trained is None or trained.model not in missing:
        return planned
    start = missing[trained.model]
    if start.pretrained is not None:
        return _with_teacher(
            planned, trained.model_copy(update={"pretrained": UNKNOWN_HASH, "trainable": start.trainable})
        )
    card = cards.find("teachers", trained.dataset.name, trained.model)
    teacher = PretrainedTeacher(
        dataset=trained.dataset,
        model=trained.model,
        weights=UNKNOWN_HASH,
        input=card.input if card and trained.input == Input() else trained.input,
        pipeline=trained.pipeline,
    )
    return _with_teacher(planned, teacher)


def _with_teacher(planned: PlannedTrial, teacher: Trial | PretrainedTeacher) -> PlannedTrial:
    trial = planned.trial.model_copy(update={"teacher": teacher}) if planned.trial.teacher else planned.trial
    return replace(planned, trial=trial, taught_by=teacher)


def _has_unknown_weights(teacher: Trial | PretrainedTeacher) -> bool:
    weights = teacher.weights if isinstance(teacher, PretrainedTeacher) else teacher.pretrained
    return weights == UNKNOWN_HASH


def _description(teacher: Trial | PretrainedTeacher) -> object:
    """Returns what is known of a teacher without its weights."""
    if isinstance(teacher, PretrainedTeacher):
        return teacher.model, teacher.dataset
    return teacher.model_copy(update={"pretrained": UNKNOWN_HASH})
