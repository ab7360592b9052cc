"""Writes results as CSV for other programs: one line a trial, or one line for each epoch of each trial."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from kd_bench.config.trial import canonical
from kd_bench.report.render import render, simple_table
from kd_bench.report.results_frame import COUNTS, NUMBERS, PERCENTAGES, read_results
from kd_bench.utils.errors import first_line

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: First columns of both files, which identify the trial.
KEYS = ("recipe", "dataset", "teacher", "student", "label", "method", "hyperparameters", "seed", "trial_id")

#: Result of a trial: accuracies in percent, times in seconds, memory in bytes. Missing values are empty.
RESULTS = ("teacher_id", "status", "reason", *PERCENTAGES, *NUMBERS, *COUNTS, "finished")

_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,60}")

#: Name of a recipe, its folder, and its trials.
RecipeTrials = tuple[str, Path, Sequence["PlannedTrial"]]


class CsvFile(NamedTuple):
    """The content of a CSV file, its number of lines without the header, and sentences on files that are damaged."""

    text: str
    lines: int
    problems: tuple[str, ...]


def trials(recipes: Iterable[RecipeTrials]) -> CsvFile:
    """Returns a line for each trial, done or not. A trial in several pairs has one line."""
    rows = []
    for recipe, folder, planned in recipes:
        cells = _unique(planned)
        for cell, result in zip(cells, read_results(folder, cells).to_dict("records"), strict=True):
            values: dict[Any, Any] = {**result, "teacher_id": cell.teacher_id if cell.trial.teacher else None}
            rows.append(_keys(recipe, cell) | {key: "" if pd.isna(values[key]) else values[key] for key in RESULTS})
    return CsvFile(_csv((*KEYS, *RESULTS), rows), len(rows), ())


def epochs(recipes: Iterable[RecipeTrials]) -> CsvFile:
    """Returns a line for each epoch of each trial, finished or not, with the columns of ``metrics.csv``."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for recipe, folder, planned in recipes:
        for cell in _unique(planned):
            file = folder / cell.trial_id / "metrics.csv"
            try:
                metrics = list(_metrics(file))
            except FileNotFoundError:  # the trial has not begun
                continue
            except (OSError, ValueError, csv.Error) as error:
                problems.append(f"{file}: left out, because it is damaged ({first_line(error)})")
                continue
            rows += [_keys(recipe, cell) | row for row in metrics]
            columns |= dict.fromkeys(key for row in metrics for key in row)
    return CsvFile(_csv((*KEYS, *columns), rows), len(rows), tuple(problems))


def _unique(planned: Iterable[PlannedTrial]) -> list[PlannedTrial]:
    """The first cell of each trial."""
    cells: dict[str, PlannedTrial] = {}
    for cell in planned:
        cells.setdefault(cell.trial_id, cell)
    return list(cells.values())


def _keys(recipe: str, cell: PlannedTrial) -> dict[str, Any]:
    trial = cell.trial
    teacher = trial.teacher.model if trial.teacher else ""
    hyperparameters = canonical(trial.method.hyperparameters)
    values = (recipe, cell.dataset, teacher, cell.student, cell.label, cell.method, hyperparameters, cell.seed)
    return dict(zip(KEYS, (*values, cell.trial_id), strict=True))


def _metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of ``metrics.csv``. Raises a ValueError if the file is damaged."""
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")), strict=True)
    names = reader.fieldnames or ()
    if "epoch" not in names or not all(_COLUMN.fullmatch(name) for name in names):
        raise ValueError("its header is none of ours")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not one value a column")
        for value in filter(None, row.values()):
            float(value)
        yield row


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    return render([simple_table("", columns, ([row.get(name) for name in columns] for row in rows))], "csv")
