"""What ``kd-bench reproduce imagenet`` runs: Table 8 and the standard recipes, or all their parts for a few steps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.config.load import find_recipe, read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.data import registry as datasets
from kd_bench.models import cards
from kd_bench.paper.cifar import CifarPart
from kd_bench.plan import network, plan, select
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils import seeding
from kd_bench.utils.errors import RunFailed, UserError, unknown
from kd_bench.utils.files import write_atomic

#: The recipe that gives the paper's Table 8, and the standard ones, each for the methods that were published so.
TABLE8 = "imagenet/table8"
RECIPES = (TABLE8, "imagenet/standard", "imagenet/standard_features", "imagenet/standard_ofd")

#: The images of all of them.
IMAGENET = Dataset(name="imagenet")

#: A smoke run: two epochs, so that what happens between them happens, of two batches of 4 images.
SMOKE = ("epochs=2", "batch_size=4", "dataset.train_images=8", "dataset.test_images=4")
#: Of Table 8's batch each half by itself, as the recipe has it in more parts.
SMOKE_TABLE8 = ("micro_batch=2",)
#: Classes of the generated images, and images a class of each split.
CLASSES, IMAGES = 4, {"train": 2, "val": 1}


def full(
    fetch: Callable[[cards.Card], Any],
    say: Callable[[str], None],
    weights: Mapping[str, Path] | None = None,
    only: Sequence[str] = (),
    trials: int | None = None,
) -> list[CifarPart]:
    """Table 8 and the standard recipes, with the published teachers.

    Args:
        fetch: Gets the weights of a card, unless they are there.
        say: Told, a line each, where teachers come from.
        weights: Files of teachers, by their networks' names.
        only: As ``plan`` takes it, over the trials of all recipes together.
        trials: Seeds a cell, over the recipes'.

    Raises:
        UserError: As ``plan``; and for weights of a network that does not teach here.
        RunFailed: Where weights cannot be had: says, for all of them, what to fetch and where to put it.
    """
    drafts = [_draft(name, (), trials) for name in RECIPES]
    kept = _kept(drafts, only)
    names = dict.fromkeys(cell.teacher for part in kept for cell in part.planned)
    given = {network(drafts[0].recipe, name, "--weights"): file for name, file in (weights or {}).items()}
    for name in given:
        if name not in names:
            raise unknown("teacher of this run", name, names, "--weights")
    failures = []
    for name in names:
        try:
            if name not in given:
                fetch(cards.card("teachers", "imagenet", name))
            say(f"{name}: {given.get(name, 'published weights')}")
        except RunFailed as failure:
            failures.append(f"{failure}, which is --weights {name}=FILE here")
    if failures:
        raise RunFailed("; ".join(failures))
    wanted = {name: {"weights": str(given.get(name, "published"))} for name in names}
    return _kept([_taught(part, wanted) for part in kept], only)


def _draft(name: str, overrides: Iterable[str], trials: int | None) -> CifarPart:
    """A recipe whose teachers are trained, because it must be planned before it is known which weights are needed."""
    recipe = read_recipe(name, overrides, trials).model_copy(update={"teachers": {}})
    context = str(find_recipe(name))
    return CifarPart(recipe, context, plan(recipe, context))


def _taught(part: CifarPart, weights: Mapping[str, dict[str, Any]]) -> CifarPart:
    """The pairs of these teachers, which are given."""
    pairs = tuple(pair for pair in part.recipe.pairs if pair.teacher in weights)
    teachers = {pair.teacher: weights[pair.teacher] for pair in pairs if pair.teacher}
    recipe = part.recipe.model_copy(update={"pairs": pairs, "teachers": teachers})
    return CifarPart(recipe, part.context, plan(recipe, part.context))


def _kept(parts: Sequence[CifarPart], only: Sequence[str]) -> list[CifarPart]:
    """The trials that match, over all parts together; parts without any are left out."""
    chosen = {id(cell) for cell in select([cell for part in parts for cell in part.planned], only)}
    kept = [CifarPart(one.recipe, one.context, [cell for cell in one.planned if id(cell) in chosen]) for one in parts]
    return [part for part in kept if part.planned]


def smoke(
    data: Path | None, out: Path, only: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[list[CifarPart], str]:
    """Every method of all recipes for a few steps, on an image folder of the data folder if there is one.

    Networks are the real ones, at the recipes' size of images, and the teachers' weights are random: nothing is
    downloaded. Images and weights are made where they are missing.

    Args:
        data: Folder of data sets; None for the default.
        out: Results folder of the smoke run.
        only: As ``full`` takes it.
        overrides: Settings over the smoke run's, for all recipes.

    Returns:
        The recipes, and on which images they run.

    Raises:
        UserError: As ``plan``, and for an image folder that is damaged.
    """
    dataset, images = _images(datasets.data_dir(data), out / "images")
    chosen = [f"dataset={dataset.name}", *([f"dataset.path={dataset.path}"] if dataset.path else [])]
    drafts = [
        _draft(name, [*chosen, *SMOKE, *(SMOKE_TABLE8 if name == TABLE8 else ()), "published=null", *overrides], 1)
        for name in RECIPES
    ]
    parts = _kept(drafts, only)
    if not parts:
        return [], images
    pipeline = parts[0].recipe.pipeline
    assert pipeline is not None  # all of them have one
    classes = datasets.listed(parts[0].recipe.dataset, pipeline, datasets.data_dir(data)).num_classes
    names = dict.fromkeys(cell.teacher for part in parts for cell in part.planned)
    weights = {name: {"weights": str(_random_weights(name, classes, pipeline.size, out))} for name in names}
    return _kept([_taught(part, weights) for part in parts], only), images


def _images(place: Path, generated: Path) -> tuple[Dataset, str]:
    """ImageNet, else the first folder of images that there is, else generated ones."""
    folders = [place, *(sorted(one for one in place.iterdir() if one.is_dir()) if place.is_dir() else ())]
    for dataset in (IMAGENET, *(Dataset(name="folder", path=str(one.resolve())) for one in folders)):
        try:
            datasets.listed(dataset, Pipeline(), place)  # a folder of something else may look like one of images
            return dataset, datasets.locate(dataset, place)
        except UserError:
            continue
    for split, count in IMAGES.items():
        for label in range(CLASSES):
            for number in range(count):
                file = generated / split / f"class{label}" / f"{number}.jpg"
                if not file.is_file():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(file, _jpeg(seeding.derive(label, f"smoke/{split}", 0, number)))
    found = Dataset(name="folder", path=str(generated.resolve()))
    return found, f"generated images, since there is no folder of images in {place}"


def _jpeg(seed: int) -> bytes:
    """Soft colours, 320 by 256 pixels."""
    import io

    import numpy as np
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(colours).resize((320, 256), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def _random_weights(name: str, classes: int, size: int, out: Path) -> Path:
    """A file of the network's initial weights, in bfloat16, made unless it is there."""
    file = out / "weights" / f"{name}-{classes}.safetensors"
    if file.is_file():
        return file
    from kd_bench.models import registry, weights

    seeding.seed_global(0, f"{seeding.WEIGHTS}/{name}")
    state = registry.create(name, classes, size).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    weights.write(file, halves, {"model": name})
    return file


def costs(part: CifarPart, out: Path) -> list[str]:
    """What a part has cost: images a second of each method by itself and of all side by side, and memory.

    Args:
        part: The part, trained.
        out: Its results folder.

    Returns:
        A line for the students of each teacher and seed, and for those alone; none where there is no result.
    """
    cohorts: dict[tuple[str, str | None, str], list[PlannedTrial]] = {}
    for cell in part.planned:
        cohorts.setdefault((*cell.trial.stream, cell.student), []).append(cell)
    found = (_cost(cells, out / part.recipe.name) for cells in cohorts.values())
    return [f"{part.recipe.name}, {line}" for line in found if line]


def _cost(cells: list[PlannedTrial], folder: Path) -> str | None:
    rates: dict[str, float] = {}
    shared = own = images = 0.0
    memory = 0
    for cell in cells:
        place = TrialFolder(folder / cell.trial_id)
        result = place.result()
        if not result or result["status"] != "done":
            continue
        rates[cell.label] = result["images_per_second"]
        images = result["images_per_second"] * result["seconds"]
        memory = max(memory, result["peak_memory_bytes"])
        rows = list(csv.DictReader((place.path / "metrics.csv").read_text(encoding="utf-8").splitlines()))
        alone = sum(float(row["own_seconds"]) for row in rows)
        own, shared = own + alone, result["seconds"] - alone
    if not rates:
        return None
    first = cells[0]
    whose = f"{first.teacher} -> {first.student}" if first.trial.teacher else f"{first.student} alone"
    together = f"; side by side {images / (own + shared):.2f}" if len(rates) > 1 else ""
    each = ", ".join(f"{label} {rate:.2f}" for label, rate in rates.items())
    return f"{whose}: images/s: {each}{together}; at most {memory / 2**30:.2f} GiB of memory"
