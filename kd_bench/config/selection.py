"""Selects planned trials by the conditions of ``--only``. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kd_bench.config.network_names import PREFIX
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
    return {network, network.removeprefix(PREFIX)} | plugin_names


def select(planned: list[PlannedTrial], only: Iterable[str]) -> list[PlannedTrial]:
    """Returns the trials that match every condition ``key=value[,value...]``.

    Raises:
        UserError: If a key does not exist, or no trial has a value.
    """
    labels = {trial.label for trial in planned}
    for condition in only:
        key, equals, values = condition.partition("=")
        if not equals or not values:
            raise UserError(f"--only {condition}: should be KEY=VALUE, e.g. method=kd,ikl_kd")
        if key not in SELECTORS:
            raise unknown("key to select by", key, SELECTORS, f"--only {condition}")
        wanted = {value.strip() for value in values.split(",")}
        selectors = [(trial, _selectors(trial, key, labels)) for trial in planned]
        present = {name for _, names in selectors for name in names}
        for value in sorted(wanted - present):
            raise unknown(f"{key} of this recipe", value, present, f"--only {condition}")
        if key == "teacher_seed":
            planned = _of_teachers([trial for trial, names in selectors if names & wanted], planned)
        else:
            planned = [trial for trial, names in selectors if names & wanted]
    return planned


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
