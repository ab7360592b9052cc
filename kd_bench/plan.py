"""Expands a recipe to its trials: fills in every default and checks every name. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kd_bench.config.data import Augment, Dataset, Input, Pipeline
from kd_bench.config.layers import Layer, build_from_layers, merge_layers
from kd_bench.config.load import find_published, merge
from kd_bench.config.network_names import PREFIX
from kd_bench.config.optimizer import DOT, in_epochs
from kd_bench.config.recipe import Recipe, RowOfPair
from kd_bench.config.selection import select
from kd_bench.config.teacher_seeds import pop_seeds, teacher_layers
from kd_bench.config.teacher_start import TeacherStart, pop_start
from kd_bench.config.trial import MethodSettings, PlannedTrial, PretrainedTeacher, Training, Trial
from kd_bench.config.validate import parse
from kd_bench.data import registry as datasets
from kd_bench.methods import _registry as methods
from kd_bench.methods._adversarial_settings import adversarial_settings
from kd_bench.models import cards, pretrained
from kd_bench.models import registry as models
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.files import sha256
from kd_bench.utils.paths import expand_user, is_file

#: The largest number of trials of a recipe.
MAX_PLANNED = 100_000


def plan(recipe: Recipe, context: str, only: Iterable[str] = (), data: Path | None = None) -> list[PlannedTrial]:
    """Returns all trials of a recipe in the table's order: pair by pair, row by row, seed by seed.

    Args:
        recipe: The recipe.
        context: Its file, for error messages.
        only: Conditions that trials must match, each ``key=value[,value...]``.
        data: Folder of the data sets, which has the generated images; None for the default.

    Raises:
        UserError: If a data set, network, method or hyper-parameter does not exist or is out of range.
    """
    datasets.check(recipe.dataset, f"{context}: dataset")
    for name in recipe.published_names():
        find_published(name, f"{context}: published")
    if recipe.baseline not in recipe.methods and recipe.baseline != "kd":
        raise unknown("row", recipe.baseline, recipe.methods, f"{context}: baseline")
    names = (pair.teacher for pair in recipe.pairs if pair.teacher)
    teachers = {name: resolve_network(recipe, name, f"{context}: pairs") for name in names}
    for name in recipe.teachers:
        if name not in teachers and name not in teachers.values():
            raise unknown("teacher of this recipe", name, teachers, f"{context}: teachers")
    of_teachers = max((len(teacher_seeds(recipe, name, context)) for name in set(teachers.values())), default=1)
    count = len(recipe.pairs) * len(recipe.methods) * len(recipe.all_seeds()) * of_teachers
    if count > MAX_PLANNED:
        crossed = f" with {of_teachers:,} seeds of a teacher" if of_teachers > 1 else ""
        raise UserError(
            f"{context}: trials: {len(recipe.pairs)} pairs, {len(recipe.methods)} methods and "
            f"{len(recipe.all_seeds())} seeds{crossed} make {count:,} trials; at most {MAX_PLANNED:,} are allowed"
        )
    _check_second_views(recipe, context)
    by_pair = [list(_plan_pair(recipe, index, teachers, context, data)) for index in range(len(recipe.pairs))]
    _refuse_repeated_pairs(by_pair, context)
    return select([cell for cells in by_pair for cell in cells], only)


def _refuse_repeated_pairs(by_pair: list[list[PlannedTrial]], context: str) -> None:
    plans = [[(cell.label, cell.trial, cell.taught_by) for cell in cells] for cells in by_pair]
    for index, cells in enumerate(plans):
        first = plans.index(cells)
        if first < index:
            raise UserError(f"{context}: pairs.{index}: has the networks and settings of pairs.{first}; leave one out")


def resolve_network(recipe: Recipe, name: str, context: str) -> str:
    """Returns the full name of a network. On small images our networks have precedence over timm's of the same name.

    Raises:
        UserError: If there is no such network.
    """
    small = datasets.resolve_spec(recipe.dataset).image_size <= 64
    return models.resolve(name, context, prefix=PREFIX if small else "")


def _check_second_views(recipe: Recipe, context: str) -> None:
    """Raises UserError if the recipe, a pair or a teacher sets a second view that no method of theirs reads."""
    settings = {"second_view": (recipe.shared_training(), recipe.methods)}
    for index, pair in enumerate(recipe.pairs):
        settings[f"pairs.{index}.training.second_view"] = (pair.training, recipe.rows_of(pair))
    settings["teacher_training.second_view"] = (recipe.teacher_training, {})
    for name, changes in recipe.teachers.items():
        settings[f"teachers.{name}.second_view"] = (changes, {})
    for key, (training, rows) in settings.items():
        if training.get("second_view") is None:
            continue
        infos = [methods.describe(row.method, f"{context}: methods.{label}") for label, row in rows.items()]
        if not any(info.uses_second_view for info in infos):
            names = ", ".join(dict.fromkeys(info.name for info in infos))
            reason = f"no method of these reads a second view: {names}" if infos else "a teacher is trained on one view"
            raise UserError(f"{context}: {key}: {reason}")


def _plan_pair(
    recipe: Recipe, index: int, teachers: Mapping[str, str], context: str, data: Path | None
) -> Iterator[PlannedTrial]:
    """Plans a trial per row and seed of a pair, and per seed of the teacher for rows that need one.

    ``teachers`` are full names of networks by the names in the recipe.
    """
    pair, pair_context = recipe.pairs[index], f"{context}: pairs.{index}"
    student = resolve_network(recipe, pair.student, pair_context)
    planned_teachers: list[tuple[Trial | PretrainedTeacher | None, Path | None]] = [(None, None)]
    if pair.teacher:
        planned_teachers = [*plan_seeded_teachers(recipe, teachers[pair.teacher], context)]
    for key, labels in (("methods", pair.methods), ("leave_out", pair.leave_out)):
        for label in labels:
            if label not in recipe.methods:
                raise unknown("row", label, recipe.methods, f"{pair_context}.{key}")
    rows = recipe.rows_of(pair)
    if not rows:
        raise UserError(f"{pair_context}.leave_out: leaves no row to the pair; remove the pair instead")
    for label, row in rows.items():
        row_context = f"{pair_context}.methods.{label}" if label in pair.methods else f"{context}: methods.{label}"
        info = methods.describe_row(label, row.method, row_context)
        if info.needs_teacher and not pair.teacher:
            raise UserError(f"{row_context}: {row.method} needs a teacher, and the pair of {pair.student} has none")
        of_pair = pair.methods.get(label, {})
        pair_row = parse(
            RowOfPair, {key: of_pair[key] for key in RowOfPair.model_fields if key in of_pair}, row_context
        )
        hyperparameters = {key: value for key, value in of_pair.items() if key not in RowOfPair.model_fields}
        method = _method(row.method, merge(row.hyperparameters, hyperparameters), row_context)
        of_row = merge(row.training, pair_row.training)
        if of_row.get("second_view") is not None and not info.uses_second_view:
            raise UserError(f"{row_context}.training.second_view: {row.method} reads one view of the images only")
        untuned = row.untuned if pair_row.untuned is None else pair_row.untuned
        layers = (
            Layer(f"{pair_context}.training", pair.training),
            Layer(f"{context}: methods.{label}.training", row.training),
            Layer(f"{pair_context}.methods.{label}.training", pair_row.training),
        )
        build = partial(_trial, recipe, student, method, recipe.all_seeds()[0], f"methods.{label}.training", data)
        trial = build_from_layers(build, recipe.shared_training(), layers, context)
        for teacher, weights in planned_teachers if info.needs_teacher else planned_teachers[:1]:
            for seed in recipe.all_seeds():
                update = {"teacher": teacher if info.needs_teacher else None, "seed": seed}
                yield PlannedTrial(trial.model_copy(update=update), label, teacher, weights, untuned)


def _method(name: str, values: Mapping[str, Any], context: str) -> MethodSettings:
    parameters, logit_settings = methods.split_row(name, values, context)
    return MethodSettings(
        name=plugins.normalise_name(name),
        hyperparameters=methods.settings(name, parameters, context),
        source=methods.source_hash(name),
        **logit_settings.logit_settings(),
    )


def _trial(
    recipe: Recipe,
    model: str,
    method: MethodSettings,
    seed: Any,
    own_key: str,
    data: Path | None,
    content: dict[str, Any],
    context: str,
) -> Trial:
    """Plans a training without a teacher.

    Args:
        own_key: The key of the recipe under which this training can have settings of its own.
        data: Folder of the data sets; None for the default.
        content: The settings of the recipe, as far as they are those of a training, with all changes.
    """
    info = methods.describe(method.name)
    if info.family != "adversarial":
        content.pop("adversarial", None)
    if not info.uses_second_view:
        content.pop("second_view", None)
    training = parse(Training, content, context)
    if isinstance(training.optimizer, DOT) and (info.family == "adversarial" or not info.needs_teacher):
        raise UserError(
            f"{context}: optimizer.name: 'dot' needs a method that distils from a teacher, and {info.name!r} does not; "
            f"choose 'sgd' for it in {own_key}"
        )
    images = datasets.known_train_size(recipe.dataset)
    if images is not None and training.batch_size > images:
        raise UserError(
            f"{context}: batch_size: {training.batch_size} is more than the {images} training images of "
            f"{recipe.dataset.title}"
        )
    adversarial = None
    if info.family == "adversarial":
        image_size = datasets.resolve_spec(recipe.dataset).image_size
        adversarial = adversarial_settings(training, info, image_size, context, data)
    update: dict[str, Any] = {
        "adversarial": adversarial,
        "schedule": in_epochs(training.schedule, training.epochs),
        "augment": _augment(recipe, training, context),
    }
    if training.second_view is not None:
        update["second_view"] = _fill_augment(recipe, training.second_view, f"{context}: second_view")
    settings = training.model_copy(update=update).model_dump(mode="json") | {
        "dataset": datasets.resolve(recipe.dataset, training.pipeline).model_dump(),
        "model": model,
        "model_source": models.source_hash(model),
        "method": method.model_dump(mode="json"),
        "seed": seed,
    }
    return parse(Trial, settings, context)


def _augment(recipe: Recipe, training: Training, context: str) -> Augment:
    """Fills in the data set's defaults and the hash of a user-defined augmentation; empty with a pipeline."""
    if training.pipeline is not None:
        datasets.check(recipe.dataset, context, training.pipeline)
        return Augment(crop=0, flip=False)
    return _fill_augment(recipe, training.augment, f"{context}: augment")


def _fill_augment(recipe: Recipe, augment: Augment, context: str) -> Augment:
    spec = datasets.resolve_spec(recipe.dataset)
    if augment.crop is not None and augment.crop > spec.crop:
        raise UserError(f"{context}.crop: {augment.crop} is more than {spec.name} allows, {spec.crop}")
    if augment.flip and not spec.flip:
        raise UserError(f"{context}.flip: a mirrored image of {spec.name} no longer has its label")
    update: dict[str, Any] = {
        "crop": spec.crop if augment.crop is None else augment.crop,
        "flip": spec.flip if augment.flip is None else augment.flip,
    }
    if augment.own is not None:
        plugin = plugins.find(plugins.AUGMENTATION, augment.own, (), f"{context}.own")
        plugin.check(f"{context}.own")
        plugin.refuse_changes(augment.own_source)
        update |= {"own": plugin.name, "own_source": plugin.hash()}
    elif augment.own_source is not None:
        raise UserError(f"{context}.own_source must be left out without {context.rpartition(' ')[2]}.own")
    return augment.model_copy(update=update)


def teacher_settings(recipe: Recipe, name: str, context: str) -> dict[str, Any]:
    """Returns the settings of the recipe that differ for the teacher ``name`` (the full name of a network)."""
    return merge_layers({}, _teacher_layers(recipe, name, context))


def teacher_seeds(recipe: Recipe, name: str, context: str) -> tuple[Any, ...]:
    """Returns the seeds of the teacher ``name`` (the full name of a network), one for most recipes."""
    return build_from_layers(pop_seeds, {}, _teacher_layers(recipe, name, context), context)


def _teacher_layers(recipe: Recipe, name: str, context: str) -> list[Layer]:
    keys = [key for key in recipe.teachers if resolve_network(recipe, key, f"{context}: teachers") == name]
    return teacher_layers(recipe, keys, context)


def plan_seeded_teachers(
    recipe: Recipe, name: str, context: str
) -> Iterator[tuple[Trial | PretrainedTeacher, Path | None]]:
    """Plans the teacher ``name`` as ``plan_teacher`` does, for each of its seeds."""
    first, file = plan_teacher(recipe, name, context)
    for seed in teacher_seeds(recipe, name, context):
        yield first.model_copy(update={"seed": seed}) if isinstance(first, Trial) else first, file


def plan_teacher(recipe: Recipe, name: str, context: str) -> tuple[Trial | PretrainedTeacher, Path | None]:
    """Plans the teacher ``name`` (the full name of a network) with the first of its seeds.

    Returns:
        The trial that trains it and the file of its initial weights (None for random ones), or the pretrained teacher
        and the file of its weights.

    Raises:
        UserError: If its settings are invalid, or the file of its weights does not exist.
    """
    build, layers = partial(_teacher, recipe, name), _teacher_layers(recipe, name, context)
    return build_from_layers(build, recipe.shared_training(), layers, context)


def _teacher(
    recipe: Recipe, name: str, settings: dict[str, Any], context: str
) -> tuple[Trial | PretrainedTeacher, Path | None]:
    """Plans a teacher from the settings of the recipe with all changes."""
    seed, start = pop_seeds(settings, context)[0], pop_start(settings, context)
    weights = settings.pop("weights", None)
    trial = _trial(recipe, name, _method("none", {}, context), seed, "teacher_training", None, settings, context)
    if weights is None:
        return _with_start(trial, start, "input" in settings, context)
    if start.pretrained is not None:
        raise UserError(
            f"{context}: weights and pretrained exclude each other: a teacher is trained from pretrained weights, and "
            "is not trained with weights; leave out one of the two"
        )
    teacher, file = plan_pretrained_teacher(trial.dataset, name, weights, f"{context}.weights")
    update: dict[str, Any] = {"dataset": trial.dataset}
    if trial.pipeline is not None:  # settings of training images are dropped: the teacher is trained already
        fields = {"size", "crop_pct", "test_size", "test_interpolation", "corrupt"}
        update["pipeline"] = Pipeline(**trial.pipeline.model_dump(include=fields))
    if trial.input != Input():
        update["input"] = trial.input
    return teacher.model_copy(update=update), file


def _with_start(trial: Trial, start: TeacherStart, has_input: bool, context: str) -> tuple[Trial, Path | None]:
    """Returns a teacher's trial with its initial weights and the part that is trained, and the file of the weights."""
    if start.pretrained is None:
        if start.trainable != "all":
            raise UserError(
                f"{context}: trainable: {start.trainable} leaves other weights as they are, so pretrained must name "
                "them: a file, or: timm"
            )
        return trial, None
    if not has_input and trial.input == Input():
        raise UserError(
            f"{context}: input is missing: {trial.model} was pretrained on other images than those of the data set; "
            f"write {pretrained.input_advice(trial.model)}"
        )
    file = pretrained.initial_weights(trial.model, start.pretrained, f"{context}: pretrained")
    return trial.model_copy(update={"pretrained": sha256(file), "trainable": start.trainable}), file


def plan_pretrained_teacher(dataset: Dataset, name: str, weights: Any, context: str) -> tuple[PretrainedTeacher, Path]:
    """Plans a pretrained teacher and returns it with the file of its weights.

    Args:
        dataset: The images it was trained on.
        name: Full name of its network.
        weights: A path, or ``published`` for the file that its card names.
        context: Key of the weights, for error messages.

    Raises:
        UserError: If the file does not exist, or published weights do not exist or were not fetched.
    """
    if not isinstance(weights, str):
        raise UserError(f"{context}: should be a file, or: published (it is {weights!r})")
    dataset = datasets.resolve(dataset)
    card = cards.find("teachers", dataset.name, name)
    if weights == "published":
        file = pretrained.require_weights(card, name, dataset.name, context)
    else:
        file = expand_user(weights)
        card = card if card and card.timm else None  # with its tag, timm's name identifies weights in any file
    if not is_file(file):
        raise UserError(f"{context}: there is no file {file}")
    view, source = card.input if card else Input(), models.source_hash(name)
    return PretrainedTeacher(dataset=dataset, model=name, weights=sha256(file), input=view, model_source=source), file


def plan_teachers(recipe: Recipe, name: str, context: str) -> list[PlannedTrial]:
    """Plans the training of a teacher, as ``plan_teacher`` does, for each seed of the recipe, or each of its ``seeds``.

    Pairs use the training with the first seed, unless the recipe names other seeds for teachers.

    Raises:
        UserError: If seeds are given both for the recipe and for the teacher, or if the teacher is not trained.
    """
    settings, layers = teacher_settings(recipe, name, context), _teacher_layers(recipe, name, context)
    keys = {key: f"{layer.context}.{key}" for layer in layers for key in layer.changes if key in settings}
    if "weights" in keys:
        raise UserError(f"{keys['weights']}: a teacher whose weights come in a file is not trained; leave out the key")
    seed_key = keys.get("seed", keys.get("seeds"))
    if seed_key is None:
        training = recipe.teacher_training | {"seeds": recipe.all_seeds()}
        recipe = recipe.model_copy(update={"teacher_training": training})
    elif recipe.seeds is not None or recipe.trials > 1:
        general = "--trials" if recipe.seeds is None else "the recipe's seeds"
        raise UserError(f"{seed_key} and {general} both say which seeds are trained; leave out one of the two")
    planned = []
    for trial, file in plan_seeded_teachers(recipe, name, context):
        assert isinstance(trial, Trial)
        planned.append(PlannedTrial(trial, "teacher", None, file))
    return planned
