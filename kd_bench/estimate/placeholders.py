"""What stands in, for an estimate, for weights and images that are not here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench import plan as planning
from kd_bench.config.data import Dataset, Input, Pipeline
from kd_bench.config.load import merge
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher
from kd_bench.data import registry as datasets
from kd_bench.models import cards
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

#: Classes, training images and test images of sets whose size nothing but their files tells: ILSVRC 2012.
SIZES = {"imagenet": (1000, 1_281_167, 50_000)}

#: The hash of weights that are not here.
UNKNOWN = "0" * 64


def plan(recipe: Recipe, context: str, only: Iterable[str] = ()) -> tuple[list[PlannedTrial], list[str]]:
    """The trials of a recipe, as ``kd_bench.plan`` gives them, whether or not its teachers' weights are here.

    Trials of teachers whose weights are not here have another identity than they will have.

    Returns:
        The trials, and a sentence for each file of weights that is not here.

    Raises:
        UserError: As ``kd_bench.plan.plan``, except for weights that are not there.
    """
    absent: dict[str, str] = {}
    for pair in recipe.pairs:
        if pair.teacher is not None:
            name = planning.network(recipe, pair.teacher, f"{context}: pairs")
            missing = _missing(recipe, name, context)
            if missing:
                absent[name] = missing
    if not absent:
        return planning.plan(recipe, context, only), []
    shared = {key: value for key, value in recipe.teacher_training.items() if key != "weights"}
    teachers = {
        key: {one: value for one, value in settings.items() if one != "weights"}
        if planning.network(recipe, key, f"{context}: teachers") in absent
        else merge(settings, {"weights": settings.get("weights", recipe.teacher_training.get("weights"))})
        for key, settings in recipe.teachers.items()
    }
    trained = recipe.model_copy(update={"teachers": teachers, "teacher_training": shared})
    return [_given(one, absent) for one in planning.plan(trained, context, only)], [
        f"{message}; the estimate does without them" for message in absent.values()
    ]


def images(dataset: Dataset, pipeline: Pipeline | None, context: Path | None) -> tuple[ArrayDataset | FileDataset, str]:
    """The images of a trial, or as many of the same shape where they are not here.

    Returns:
        The images, and why others stand in for them; empty where none do.

    Raises:
        UserError: Where the images are not here and nothing says how many they are.
    """
    folder = datasets.data_dir(context)
    try:
        datasets.locate(dataset, folder)
    except UserError as error:
        spec = datasets.chosen(dataset)
        sizes = SIZES.get(dataset.name) or (spec.num_classes, spec.train_size, spec.test_size)
        if None in sizes:
            raise
        return _stand_in(dataset, pipeline, *sizes), str(error)  # type: ignore[arg-type]
    return datasets.images(dataset, pipeline, folder), ""


def _missing(recipe: Recipe, name: str, context: str) -> str:
    own = dict(recipe.teacher_training)
    for key, settings in recipe.teachers.items():
        if planning.network(recipe, key, f"{context}: teachers") == name:
            own = merge(own, settings)
    weights = own.get("weights")
    if not isinstance(weights, str):
        return ""
    try:
        planning.given_teacher(recipe.dataset, name, weights, f"{context}: teachers.{name}.weights")
    except UserError as error:
        return str(error)
    return ""


def _given(planned: PlannedTrial, absent: dict[str, str]) -> PlannedTrial:
    taught = planned.taught_by
    if taught is None or taught.model not in absent:
        return planned
    card = cards.find("teachers", taught.dataset.name, taught.model)
    seen = card.input if card and taught.input == Input() else taught.input
    given = PretrainedTeacher(
        dataset=taught.dataset, model=taught.model, weights=UNKNOWN, input=seen, pipeline=taught.pipeline
    )
    trial = planned.trial.model_copy(update={"teacher": given}) if planned.trial.teacher else planned.trial
    return replace(planned, trial=trial, taught_by=given)


def _stand_in(
    dataset: Dataset, pipeline: Pipeline | None, classes: int, train: int, test: int
) -> ArrayDataset | FileDataset:
    import numpy as np
    import torch

    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset, Files

    spec = datasets.chosen(dataset)
    kept = dataset.classes or classes
    whole = spec.num_classes if dataset.classes is None else datasets.spec(dataset.name).num_classes
    share = kept / max(kept, whole or classes)
    sizes = [
        min(wanted or size, round(size * share))
        for size, wanted in ((train, dataset.train_images), (test, dataset.test_images))
    ]
    labels = [np.arange(size) * kept // size for size in sizes]
    names = tuple(str(one) for one in range(kept))
    if pipeline is not None:
        files = [Files((Path(),) * kept, np.zeros(len(one), "S1"), one) for one in labels]
        return FileDataset(files[0], files[1], names, spec.mean, spec.std, pipeline)
    image = torch.randint(0, 256, (1, spec.channels, spec.image_size, spec.image_size), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
    images = [image.expand(size, -1, -1, -1) for size in sizes]  # takes no memory
    classes_of = [torch.from_numpy(one) for one in labels]
    return ArrayDataset(images[0], classes_of[0], images[1], classes_of[1], names, spec.mean, spec.std)
