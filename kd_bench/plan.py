"""From a recipe to its trials: every default filled in, every name checked, nothing heavy imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.data import Augment, Dataset, Input, Pipeline
from kd_bench.config.load import merge, parse
from kd_bench.config.optimizer import Schedule, StepSchedule
from kd_bench.config.recipe import PairEntry, Recipe
from kd_bench.config.trial import MethodSettings, PlannedTrial, PretrainedTeacher, Training, Trial
from kd_bench.data import registry as datasets
from kd_bench.methods import registry as methods
from kd_bench.models import cards, pretrained
from kd_bench.models import registry as models
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.files import sha256

#: What ``--only`` can select by, and how a planned trial answers.
SELECTORS: dict[str, Callable[[PlannedTrial], set[str]]] = {
    "method": lambda planned: {planned.label, planned.method},
    "student": lambda planned: _names(planned.student),
    "teacher": lambda planned: _names(planned.teacher),
    "seed": lambda planned: {str(planned.seed)},
}


def plan(recipe: Recipe, context: str, only: Iterable[str] = ()) -> list[PlannedTrial]:
    """All trials of a recipe in the table's order: pair by pair, row by row, seed by seed.

    Args:
        recipe: The recipe.
        context: Its file, for error messages.
        only: ``key=value[,value...]`` each; a trial must match all.

    Raises:
        UserError: For a data set, network, method or hyper-parameter that does not exist or is out of range.
    """
    datasets.check(recipe.dataset, f"{context}: dataset")
    if recipe.baseline not in recipe.methods and recipe.baseline != "kd":
        raise unknown("row", recipe.baseline, recipe.methods, f"{context}: baseline")
    known = {pair.teacher: network(recipe, pair.teacher, f"{context}: pairs") for pair in recipe.pairs if pair.teacher}
    for name in recipe.teachers:
        if name not in known and name not in known.values():
            raise unknown("teacher of this recipe", name, known, f"{context}: teachers")
    planned = [
        one
        for place, pair in enumerate(recipe.pairs)
        for one in _pair(recipe, pair, f"{context}: pairs.{place}", known)
    ]
    return select(planned, only)


def network(recipe: Recipe, name: str, context: str) -> str:
    """The network that a recipe calls ``name``: on small images ours go before timm's of the same name.

    Raises:
        UserError: For a name that nobody knows.
    """
    small = datasets.chosen(recipe.dataset).image_size <= 64
    return models.resolve(name, context, prefix=models.PREFIX if small else "")


def teacher_of(recipe: Recipe, name: str, context: str) -> tuple[Trial | PretrainedTeacher, Path | None]:
    """What makes the teacher ``name`` (a network's name) under this recipe, and the file of its weights if given.

    Raises:
        UserError: For settings that are no teacher's, and weights that are not there.
    """
    own: dict[str, Any] = {}
    for key, settings in recipe.teachers.items():
        if network(recipe, key, f"{context}: teachers") == name:
            own = merge(own, settings)
    overrides = merge(recipe.teacher_training, own)
    weights = overrides.pop("weights", None)
    seed = overrides.pop("seed", 0)
    trial = _trial(recipe, overrides, f"{context}: teacher_training", model=name, method=_alone(context), seed=seed)
    if weights is None:
        return trial, None
    place = f"{context}: teachers.{name}.weights"
    given, file = given_teacher(trial.dataset, name, weights, place)
    update: dict[str, Any] = {"dataset": trial.dataset, "pipeline": _test_only(trial.pipeline)}
    return given.model_copy(update=update if trial.input == Input() else update | {"input": trial.input}), file


def _test_only(pipeline: Pipeline | None) -> Pipeline | None:
    """What of a pipeline concerns test images: a given teacher is the same whatever its students train by."""
    if pipeline is None:
        return None
    concerned = {"size", "crop_pct", "test_size", "test_interpolation", "corrupt"}
    return Pipeline.model_validate(pipeline.model_dump(include=concerned))


def teachers(recipe: Recipe, name: str, context: str) -> list[PlannedTrial]:
    """The trainings of the teacher ``name`` (a network's name) under this recipe, one a seed of the recipe.

    The first seed's is, unless the recipe names another, the one that pairs with this teacher use.

    Raises:
        UserError: As ``teacher_of``.
    """
    found = []
    for seed in recipe.all_seeds():
        seeded = recipe.model_copy(update={"teacher_training": merge(recipe.teacher_training, {"seed": seed})})
        trial, _ = teacher_of(seeded, name, context)
        assert isinstance(trial, Trial)
        found.append(PlannedTrial(trial, "teacher", None))
    return found


def given_teacher(dataset: Dataset, name: str, weights: Any, context: str) -> tuple[PretrainedTeacher, Path]:
    """A teacher whose weights come in a file, and that file.

    Args:
        dataset: What it was trained on.
        name: The network's name.
        weights: A path, or ``published`` for the file that its card names.
        context: Where it was written, for error messages.

    Raises:
        UserError: For a file that is not there, and published weights that were not fetched or do not exist.
    """
    if not isinstance(weights, str):
        raise UserError(f"{context}: should be a file, or: published (it is {weights!r})")
    dataset = datasets.resolved(dataset)
    card = cards.find("teachers", dataset.name, name)
    if weights == "published":
        file = pretrained.fetched(card, name, dataset.name, context)
    else:
        file = Path(weights).expanduser()
        card = card if card and card.timm else None  # with its tag the name says which weights, wherever they lie
    if not file.is_file():
        raise UserError(f"{context}: there is no file {file}")
    given = PretrainedTeacher(
        dataset=dataset,
        model=name,
        weights=sha256(file),
        input=card.input if card else Input(),
        model_source=models.source_hash(name),
    )
    return given, file


def select(planned: list[PlannedTrial], only: Iterable[str]) -> list[PlannedTrial]:
    """Those that match every ``key=value[,value...]``.

    Raises:
        UserError: For a key one cannot select by, and a value that nothing here has.
    """
    for condition in only:
        key, equals, values = condition.partition("=")
        if not equals or not values:
            raise UserError(f"--only {condition}: should be KEY=VALUE, e.g. method=kd,ikl_kd")
        if key not in SELECTORS:
            raise unknown("key to select by", key, SELECTORS, f"--only {condition}")
        wanted = {value.strip() for value in values.split(",")}
        present = {name for one in planned for name in SELECTORS[key](one)}
        for value in sorted(wanted - present):
            raise unknown(f"{key} of this recipe", value, present, f"--only {condition}")
        planned = [one for one in planned if SELECTORS[key](one) & wanted]
    return planned


def _names(network: str) -> set[str]:
    own = {network.rpartition(":")[2], f"./{network}"} if plugins.is_file(network) else set()
    return {network, network.removeprefix("cifar_")} | own


def _pair(recipe: Recipe, pair: PairEntry, context: str, known: Mapping[str, str]) -> Iterable[PlannedTrial]:
    student = network(recipe, pair.student, context)
    teacher, file = teacher_of(recipe, known[pair.teacher], context) if pair.teacher else (None, None)
    for label in pair.methods:
        if label not in recipe.methods:
            raise unknown("row", label, recipe.methods, f"{context}.methods")
    for label, entry in recipe.methods.items():
        place = (
            f"{context}.methods.{label}" if label in pair.methods else f"{context.partition(': ')[0]}: methods.{label}"
        )
        info = methods.describe(entry.method, place)
        if info.needs_teacher and teacher is None:
            raise UserError(f"{place}: {entry.method} needs a teacher, and the pair of {pair.student} has none")
        method = MethodSettings(
            name=plugins.tidy(entry.method),
            hyperparameters=methods.check(
                entry.method, merge(entry.hyperparameters, pair.methods.get(label, {})), place
            ),
            source=methods.source_hash(entry.method),
        )
        taught = teacher if info.needs_teacher else None
        changes, seeds = merge(pair.training, entry.training), recipe.all_seeds()
        trial = _trial(recipe, changes, f"{context}.training", model=student, method=method, seed=seeds[0])
        for seed in seeds:
            yield PlannedTrial(trial.model_copy(update={"teacher": taught, "seed": seed}), label, teacher, file)


def _alone(context: str) -> MethodSettings:
    return MethodSettings(name="none", hyperparameters=methods.check("none", {}, context))


def _trial(recipe: Recipe, overrides: Mapping[str, Any], context: str, **fields: Any) -> Trial:
    content = merge(recipe.shared_training(), overrides)
    method: MethodSettings = fields["method"]
    info = methods.describe(method.name)
    if info.family != "adversarial":
        content.pop("adversarial", None)
    training = parse(Training, content, context)
    if info.family == "adversarial":
        training = training.model_copy(update={"adversarial": _adversarial(training, info, context)})
    others = {
        key: value.model_dump(mode="json") if hasattr(value, "model_dump") else value for key, value in fields.items()
    }
    settings = training.model_dump(mode="json") | {
        "schedule": _in_epochs(training.schedule, training.epochs).model_dump(mode="json"),
        "augment": _augment(recipe, training, context).model_dump(mode="json"),
        "dataset": datasets.resolved(recipe.dataset, training.pipeline).model_dump(),
    }
    return parse(Trial, settings | others | {"model_source": models.source_hash(others["model"])}, context)


def _adversarial(training: Training, info: methods.MethodInfo, context: str) -> Adversarial:
    """How images are perturbed for a method that needs it, generated images by their checksum."""
    found = training.adversarial
    if found is None:
        raise UserError(
            f"{context}: {info.name} trains on perturbed images, so adversarial is missing, at least its eps"
        )
    for key in info.demands:
        if not getattr(found, key):
            raise UserError(
                f"{context}: {info.name} is another method without adversarial.{key}, which is not switched on"
            )
    if found.generated is None or found.generated.sha256 is not None:
        return found
    file = datasets.data_dir() / found.generated.path
    if not file.is_file():
        raise UserError(
            f"{context}: adversarial.generated: there is no file {file}; where it is elsewhere, its checksum must be "
            "given as adversarial.generated.sha256"
        )
    return found.model_copy(update={"generated": found.generated.model_copy(update={"sha256": sha256(file)})})


def _augment(recipe: Recipe, training: Training, context: str) -> Augment:
    """What happens to images in memory, every choice written out; nothing where a pipeline reads them.

    The user's own augmentation gets the hash of its file.
    """
    if training.pipeline is not None:
        datasets.check(recipe.dataset, context, training.pipeline)
        return Augment(crop=0, flip=False)
    spec = datasets.chosen(recipe.dataset)
    crop, flip, most = training.augment.crop, training.augment.flip, spec.crop
    flips = spec.flip if flip is None else flip
    if crop is not None and crop > most:
        raise UserError(f"{context}: augment.crop: {crop} is more than {spec.name} allows, {most}")
    if flip and not spec.flip:
        raise UserError(f"{context}: augment.flip: a mirrored image of {spec.name} no longer has its label")
    update: dict[str, Any] = {"crop": most if crop is None else crop, "flip": flips}
    if training.augment.own is not None:
        update |= _own_augment(training.augment.own, training.augment.own_source, f"{context}: augment.own")
    elif training.augment.own_source is not None:
        raise UserError(f"{context}: augment.own_source must be left out where there is no augment.own")
    return training.augment.model_copy(update=update)


def _own_augment(name: str, source: str | None, context: str) -> dict[str, Any]:
    plugin = plugins.find(plugins.AUGMENTATION, name, (), context)
    plugin.source(context)
    plugin.refuse_changes(source)
    return {"own": plugin.name, "own_source": plugin.hash()}


def _in_epochs(schedule: Schedule, epochs: int) -> Schedule:
    """Fractions of the training as whole epochs, so that the same number is not written in two ways."""
    if not isinstance(schedule, StepSchedule):
        return schedule
    at = (value if isinstance(value, int) else max(1, round(value * epochs)) for value in schedule.milestones)
    return schedule.model_copy(update={"milestones": tuple(sorted(set(at)))})
