"""Placeholders for missing weights and images, so that a recipe can be estimated without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench import plan as planning
from kd_bench.config.data import Dataset, Input, Pipeline
from kd_bench.config.load import merge
from kd_bench.config.recipe import Recipe
from kd_bench.config.teacher_start import TeacherStart, pop_start
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher
from kd_bench.data import registry as datasets
from kd_bench.models import cards, pretrained
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

#: Hash of missing weights.
UNKNOWN_HASH = "0" * 64


def plan_with_placeholders(
    recipe: Recipe, context: str, only: Iterable[str] = ()
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
        return planning.plan(recipe, context, only), []
    training = _without_weights(recipe.teacher_training)
    general = {key: value for key, value in recipe.teacher_training.items() if key not in training}
    settings_by_teacher = {
        key: _without_weights(settings)
        if planning.resolve_network(recipe, key, f"{context}: teachers") in missing
        else merge(general, settings)
        for key, settings in recipe.teachers.items()
    }
    trained = recipe.model_copy(update={"teachers": settings_by_teacher, "teacher_training": training})
    starts = {name: pop_start(planning.teacher_settings(recipe, name, context), context) for name in missing}
    planned = [_with_placeholder(trial, starts) for trial in planning.plan(trained, context, only)]
    return planned, [f"{reason}; the estimate does without them" for reason in missing.values()]


def images_or_placeholders(
    dataset: Dataset, pipeline: Pipeline | None, data_dir: Path | None
) -> tuple[ArrayDataset | FileDataset, str]:
    """Opens a data set, or returns placeholders of the same number and shape if its images are missing.

    Returns:
        The images, and the reason for placeholders; empty if there are none.

    Raises:
        UserError: If the images are missing and their number is unknown.
    """
    data_dir = datasets.resolve_data_dir(data_dir)
    try:
        datasets.locate(dataset, data_dir)
    except UserError as error:
        spec = datasets.resolve_spec(dataset)
        classes, train, test = spec.full_size or (spec.num_classes, spec.train_size, spec.test_size)
        if classes is None or train is None or test is None:
            raise
        return _placeholder_images(dataset, pipeline, classes, train, test), str(error)
    return datasets.open_dataset(dataset, pipeline, data_dir), ""


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
        started = trained.model_copy(update={"pretrained": UNKNOWN_HASH, "trainable": start.trainable})
        trial = planned.trial.model_copy(update={"teacher": started}) if planned.trial.teacher else planned.trial
        return replace(planned, trial=trial, taught_by=started)
    card = cards.find("teachers", trained.dataset.name, trained.model)
    teacher = PretrainedTeacher(
        dataset=trained.dataset,
        model=trained.model,
        weights=UNKNOWN_HASH,
        input=card.input if card and trained.input == Input() else trained.input,
        pipeline=trained.pipeline,
    )
    trial = planned.trial.model_copy(update={"teacher": teacher}) if planned.trial.teacher else planned.trial
    return replace(planned, trial=trial, taught_by=teacher)


def _placeholder_images(
    dataset: Dataset, pipeline: Pipeline | None, classes: int, train: int, test: int
) -> ArrayDataset | FileDataset:
    import numpy as np
    import torch

    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset, Files

    spec = datasets.resolve_spec(dataset)
    selected = dataset.classes or classes
    all_classes = spec.num_classes if dataset.classes is None else datasets.spec(dataset.name).num_classes
    fraction = selected / max(selected, all_classes or classes)
    sizes = [
        min(limit or size, round(size * fraction))
        for size, limit in ((train, dataset.train_images), (test, dataset.test_images))
    ]
    labels = [np.arange(size) * selected // size for size in sizes]
    names = tuple(map(str, range(selected)))
    if pipeline is not None:
        train_files, test_files = (Files((Path(),) * selected, np.zeros(len(split), "S1"), split) for split in labels)
        return FileDataset(train_files, test_files, names, spec.mean, spec.std, pipeline)
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.channels, spec.image_size, spec.image_size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    train_images, test_images = (image.expand(size, -1, -1, -1) for size in sizes)  # takes no memory
    train_labels, test_labels = map(torch.from_numpy, labels)
    return ArrayDataset(train_images, train_labels, test_images, test_labels, names, spec.mean, spec.std)
