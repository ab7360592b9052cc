"""The seeds of teachers: ``teachers: {resnet20: {seeds: 3}}``, or ``teacher_training: {seeds: 3}`` for all teachers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from kd_bench.config.base import Settings
from kd_bench.config.layers import Layer
from kd_bench.config.limits import Trials
from kd_bench.config.trial import PretrainedTeacher, Seeds, Trial
from kd_bench.config.validate import parse
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.recipe import Recipe


class _Number(Settings):
    seeds: Trials


class _List(Settings):
    seeds: Seeds


def teacher_layers(recipe: Recipe, keys: Iterable[str], context: str) -> list[Layer]:
    """Returns the settings of all teachers, and those of one. Its ``seed``, ``seeds`` or ``weights`` replace seeds.

    Args:
        recipe: The recipe.
        keys: The keys of ``teachers`` that name the teacher.
        context: File of the recipe, for error messages.
    """
    of_one = [Layer(f"{context}: teachers.{key}", recipe.teachers[key]) for key in keys]
    of_all = recipe.teacher_training
    if any(layer.changes.get(key) is not None for layer in of_one for key in ("seed", "seeds", "weights")):
        of_all = {key: value for key, value in of_all.items() if key not in ("seed", "seeds")}
    return [Layer(f"{context}: teacher_training", of_all), *of_one]


def pop_seeds(settings: dict[str, Any], context: str) -> tuple[Any, ...]:
    """Removes the seeds from a teacher's settings and returns them. A single ``seed`` is still to be checked.

    Args:
        settings: The teacher's settings.
        context: File and key of the settings, for error messages.

    Raises:
        UserError: If the seeds are invalid, or do not go with other settings.
    """
    if "seeds" not in settings:
        return (settings.pop("seed", 0),)
    value = settings.pop("seeds")
    if "seed" in settings:
        raise UserError(f"{context}: seed and seeds exclude each other; leave out one of the two")
    if "weights" in settings:
        raise UserError(
            f"{context}: seeds: a teacher whose weights come in a file is not trained, so it has no seeds; leave out "
            "seeds or weights"
        )
    if not isinstance(value, list | tuple):
        return tuple(range(parse(_Number, {"seeds": value}, context).seeds))
    return parse(_List, {"seeds": value}, context).seeds


def teachers_of_several_seeds(trials: Iterable[Trial | PretrainedTeacher]) -> set[str]:
    """Returns the networks of the teachers that these trials have with several seeds, whose name says too little."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for trial in trials:
        if isinstance(trial.teacher, Trial):
            seeds[trial.teacher.model].add(trial.teacher.seed)
    return {name for name, of in seeds.items() if len(of) > 1}


def teacher_suffix(trial: Trial | PretrainedTeacher, several: Container[str]) -> str:
    """Returns the seed of a trial's teacher as in `` (seed 1)``; empty if the teacher is not one of ``several``."""
    teacher = trial.teacher
    return f" (seed {teacher.seed})" if isinstance(teacher, Trial) and teacher.model in several else ""


def with_first_teachers(recipe: Recipe) -> Recipe:
    """Returns the recipe with the first of each teacher's seeds only.

    Raises:
        UserError: If seeds are invalid.
    """

    def first(settings: dict[str, Any], key: str) -> dict[str, Any]:
        if "seeds" not in settings:
            return settings
        rest = dict(settings)
        seed = pop_seeds(rest, f"{recipe.name}: {key}")[0]
        return rest | {"seed": seed}

    teachers = {name: first(settings, f"teachers.{name}") for name, settings in recipe.teachers.items()}
    general = first(recipe.teacher_training, "teacher_training")
    return recipe.model_copy(update={"teachers": teachers, "teacher_training": general})
