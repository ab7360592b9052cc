"""Selects planned trials by the conditions of ``--only``. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import replace

from kd_bench.config.network_names import short_name
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, unknown

#: Keys of ``--only``, and the values by which they select a trial. A method's name that is also the label of a row
#: selects this row only, and a trial without a teacher belongs to all seeds of its pair's teacher.
SELECTORS: dict[str, Callable[[PlannedTrial], set[str]]] = {
    "method": lambda trial: {trial.label, trial.method},
    "student": lambda trial: _names(trial.student),
    "teacher": lambda trial: _names(trial.teacher),
    "seed": lambda trial: {str(trial.seed)},
    "teacher_seed": lambda trial: {str(trial.taught_by.seed)} if isinstance(trial.taught_by, Trial) else set(),
}


def _names(network: str) -> set[str]:
    plugin_names = {network.rpartition(":")[2], f"./{network}"} if plugins.is_file_name(network) else set()
    return {network, short_name(network)} | plugin_names


def select(planned: list[PlannedTrial], only: Iterable[str]) -> list[PlannedTrial]:
    """Returns the trials that match conditions ``key=value[,value...]``.

    A trial matches a key if it has one of its values, in whichever condition they are, and is returned if it matches
    every key.

    Raises:
        UserError: If a key does not exist, no trial has a value, or no trial matches every key.
    """
    labels = {trial.label for trial in planned}
    conditions: dict[str, list[str]] = {}
    for condition in only:
        key, equals, values = condition.partition("=")
        if not equals or not values.strip():
            raise UserError(f"--only {condition}: should be KEY=VALUE, e.g. method=kd,ikl_kd")
        if key.strip() not in SELECTORS:
            raise unknown("key to select by", key.strip(), SELECTORS, f"--only {condition}")
        conditions.setdefault(key.strip(), []).append(condition)
    names = {key: {name for trial in planned for name in _selectors(trial, key, labels)} for key in conditions}
    # The seed of a teacher first: it gives teachers to the trials without one, which other keys may leave alone.
    for key in sorted(conditions, key=lambda key: key != "teacher_seed"):
        chosen = {value for text in conditions[key] for value in _values(text, key, names[key])}
        selected = [trial for trial in planned if _selectors(trial, key, labels) & chosen]
        planned = _of_teachers(selected, planned) if key == "teacher_seed" else selected
    if conditions and not planned:
        options = " ".join(f"--only {text}" for texts in conditions.values() for text in texts)
        raise UserError(f"{options}: no trial of this recipe matches all of these")
    return planned


def split_names(text: str, names: Container[str]) -> list[str]:
    """Returns the names in a text, which commas separate; the whole text if it is one of ``names``."""
    return [text] if text in names else [name.strip() for name in text.split(",")]


def _values(condition: str, key: str, names: Collection[str]) -> list[str]:
    """Returns the values of a condition. Raises a UserError if one is none of ``names``."""
    values = split_names(condition.partition("=")[2], names)
    for value in values:
        if not value:
            raise UserError(
                f"--only {condition}: a value is lacking; commas stand between values, e.g. method=kd,ikl_kd"
            )
        if value not in names:
            raise unknown(f"{key} of this recipe", value, names, f"--only {condition}")
    return values


def _of_teachers(taught: list[PlannedTrial], planned: list[PlannedTrial]) -> list[PlannedTrial]:
    """Returns the selected trials with teachers, and those without one that belong to a pair of theirs."""
    first = {(cell.teacher, cell.student): cell for cell in reversed(taught)}
    chosen = set(map(id, taught))
    selected = []
    for cell in planned:
        of_pair = first.get((cell.teacher, cell.student))
        if cell.trial.teacher is None and of_pair is not None:
            selected.append(replace(cell, taught_by=of_pair.taught_by, weights=of_pair.weights))
        elif id(cell) in chosen:
            selected.append(cell)
    return selected


def _selectors(trial: PlannedTrial, key: str, labels: set[str]) -> set[str]:
    """Returns the values of ``--only KEY=`` that select a trial; ``labels`` are those of all rows."""
    values = SELECTORS[key](trial)
    return values - (labels - {trial.label}) if key == "method" else values
