"""Writes results as CSV for other programs: a line a trial, or a line for each epoch, or each attack, of each trial."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from kd_bench.config.attack import chained
from kd_bench.config.trial import canonical
from kd_bench.report import attack_table
from kd_bench.report.column_cells import PROTOCOLS, trial_values
from kd_bench.report.columns import COLUMNS
from kd_bench.report.render import render, simple_table
from kd_bench.report.results_frame import COUNTS, IMAGES, NUMBERS, PERCENTAGES, read_results
from kd_bench.trials.reader import read_trial

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: First columns of all files, which identify the trial.
KEYS = ("recipe", "dataset", "teacher", "student", "label", "method", "hyperparameters", "seed", "trial_id")

#: Result of a trial: accuracies in percent, times in seconds, memory in bytes, digest of the images, name of the
#: device. Missing values are empty.
RESULTS = ("teacher_id", "teacher_seed", "status", "reason", *PERCENTAGES, *NUMBERS, *COUNTS, "finished", *IMAGES,
           "device")  # fmt: skip

#: Values of ``kd-bench evaluate`` in the units of ``evaluation.json``, and how those were measured that may differ.
EVALUATION = (*(name for name, column in COLUMNS.items() if column.has_protocol and name not in RESULTS), *PROTOCOLS)

#: Accuracy in percent after an attack of ``kd-bench attack`` on some or all test images, for pixels from 0 to 1.
#: ``is_robust`` marks the accuracy after all attacks, ``is_autoattack`` that after all attacks of standard AutoAttack.
ATTACKS = ("norm", "eps", "images", "test_images", "attack_seed", "attack", "top1", "is_robust", "is_autoattack")

_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,60}")

#: Name of a recipe, its folder, and its trials.
RecipeTrials = tuple[str, Path, Sequence["PlannedTrial"]]


class CsvFile(NamedTuple):
    """The content of a CSV file, its number of lines without the header, and sentences on files that are damaged."""

    text: str
    lines: int
    problems: tuple[str, ...]


def trials(recipes: Iterable[RecipeTrials]) -> CsvFile:
    """Returns a line for each trial, done or not. A trial in several pairs has one line, a damaged one no numbers."""
    rows = []
    problems = []
    for recipe, folder, planned in recipes:
        cells = _unique(planned)
        for cell, result in zip(cells, read_results(folder, cells).to_dict("records"), strict=True):
            values: dict[Any, Any] = {**result, "teacher_id": cell.teacher_id if cell.trial.teacher else None}
            if values["status"] == "damaged":
                problems.append(f"{read_trial(folder / cell.trial_id).advice}; its line has no numbers")
            row = _keys(recipe, cell) | {key: "" if pd.isna(values[key]) else values[key] for key in RESULTS}
            if values["status"] == "done":
                teachers = [cell.teacher_id] if cell.trial.teacher and cell.teacher_id else []
                evaluated, problem = trial_values(folder / cell.trial_id, teachers)
                problems += [problem] if problem else []
                row |= {name: value for name, value in evaluated.items() if name not in row}
            rows.append(row)
    return CsvFile(_csv((*KEYS, *RESULTS, *EVALUATION), rows), len(rows), tuple(problems))


def epochs(recipes: Iterable[RecipeTrials]) -> CsvFile:
    """Returns a line for each epoch of each trial, finished or not, with the columns of ``metrics.csv``."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for recipe, folder, planned in recipes:
        for cell in _unique(planned):
            record = read_trial(folder / cell.trial_id)
            if record.is_damaged:
                problems.append(f"{record.advice}; left out")
                continue
            if record.metrics is None:  # the trial has not begun, or it is not finished and its metrics are damaged
                faults = (fault for fault in record.remarks if fault.file == "metrics.csv")
                problems += [f"{record.path / fault.file}: {fault.text}; left out" for fault in faults]
                continue
            odd = next((name for name in record.metrics.columns if not _COLUMN.fullmatch(name)), None)
            if odd is not None:
                problems.append(f"{record.path / 'metrics.csv'}: has a column {odd!r}, which is none of ours; left out")
                continue
            metrics = list(record.metrics.records())
            rows += [_keys(recipe, cell) | row for row in metrics]
            columns |= dict.fromkeys(key for row in metrics for key in row)
    return CsvFile(_csv((*KEYS, *columns), rows), len(rows), tuple(problems))


def attacks(recipes: Iterable[RecipeTrials]) -> CsvFile:
    """Returns a line for each attack in each finished evaluation of each finished trial, ``clean`` first."""
    rows = []
    for recipe, folder, planned in recipes:
        for cell, evaluation in attack_table.trial_evaluations(folder, _unique(planned)):
            settings = evaluation.attack
            about = (settings.norm, settings.eps, evaluation.images, evaluation.of, settings.seed)
            last = chained(name for name in evaluation.accuracy if name != attack_table.CLEAN)[-1]
            for attack, top1 in evaluation.accuracy.items():
                is_robust = attack == last
                values = (*about, attack, top1, is_robust, is_robust and evaluation.complete)
                rows.append(_keys(recipe, cell) | dict(zip(ATTACKS, values, strict=True)))
    return CsvFile(_csv((*KEYS, *ATTACKS), rows), len(rows), ())


def _unique(planned: Iterable[PlannedTrial]) -> list[PlannedTrial]:
    """The first cell of each trial."""
    cells: dict[str, PlannedTrial] = {}
    for cell in planned:
        cells.setdefault(cell.trial_id, cell)
    return list(cells.values())


def _keys(recipe: str, cell: PlannedTrial) -> dict[str, Any]:
    trial = cell.trial
    teacher = trial.teacher.model if trial.teacher else ""
    hyperparameters = canonical(trial.method.hyperparameters | trial.method.logit_settings())
    values = (recipe, cell.dataset, teacher, cell.student, cell.label, cell.method, hyperparameters, cell.seed)
    return dict(zip(KEYS, (*values, cell.trial_id), strict=True))


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    return render([simple_table("", columns, ([row.get(name) for name in columns] for row in rows))], "csv")
