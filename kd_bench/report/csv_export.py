"""Results for other programs: CSV with a line a trial, or a line an epoch of each trial."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from kd_bench.config.trial import canonical
from kd_bench.report.results_frame import COUNTS, NUMBERS, PERCENTAGES, read_results
from kd_bench.utils.errors import first_line

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: What both kinds of line begin with: what the trial is.
KEYS = ("recipe", "dataset", "teacher", "student", "label", "method", "hyperparameters", "seed", "trial_id")

#: What a trial came to; accuracies in percent, times in seconds, memory in bytes. Empty where a trial has none.
RESULTS = ("teacher_id", "status", "reason", *PERCENTAGES, *NUMBERS, *COUNTS, "finished")

_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,60}")


class CsvTable(NamedTuple):
    """A CSV file.

    Attributes:
        text: Its content.
        lines: How many there are, without the header.
        problems: Sentences on files that could not be read.
    """

    text: str
    lines: int
    problems: tuple[str, ...]


def trials(parts: Sequence[tuple[str, Path, Sequence[PlannedTrial]]]) -> CsvTable:
    """A line for each trial, those that are missing or failed included.

    Args:
        parts: Names of recipes, their folders, and what is planned of them. A trial that stands under several pairs has
            one line, and a student alone no teacher.
    """
    rows = []
    for name, folder, cells in parts:
        once = list(_once(cells))
        found = read_results(folder, once).to_dict("records")
        for cell, result in zip(once, found, strict=True):
            known = {str(key): value for key, value in result.items()}
            taught = known | {"teacher_id": cell.teacher_id if cell.trial.teacher else None}
            rows.append({**_about(name, cell), **{key: _plain(taught.get(key)) for key in RESULTS}})
    return CsvTable(_csv((*KEYS, *RESULTS), rows), len(rows), ())


def epochs(parts: Sequence[tuple[str, Path, Sequence[PlannedTrial]]]) -> CsvTable:
    """A line for each epoch of each trial, finished or not: the columns of ``metrics.csv``.

    Args:
        parts: As of ``trials``.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for name, folder, cells in parts:
        for cell in _once(cells):
            file = folder / cell.trial_id / "metrics.csv"
            try:
                measured = list(_read(file))
            except FileNotFoundError:
                continue  # not begun
            except (OSError, ValueError, csv.Error) as error:
                problems.append(f"{file}: left out, because it is damaged ({first_line(error)})")
                continue
            about = _about(name, cell)
            rows += [{**about, **row} for row in measured]
            columns |= dict.fromkeys(key for row in measured for key in row)
    return CsvTable(_csv((*KEYS, *columns), rows), len(rows), tuple(problems))


def _once(cells: Sequence[PlannedTrial]) -> Iterator[PlannedTrial]:
    """Each trial once, where it stands first."""
    seen: set[str] = set()
    for cell in cells:
        if cell.trial_id not in seen:
            seen.add(cell.trial_id)
            yield cell


def _about(recipe: str, cell: PlannedTrial) -> dict[str, Any]:
    trial = cell.trial
    return {
        "recipe": recipe,
        "dataset": cell.dataset,
        "teacher": trial.teacher.model if trial.teacher else "",
        "student": cell.student,
        "label": cell.label,
        "method": cell.method,
        "hyperparameters": canonical(trial.method.hyperparameters),
        "seed": cell.seed,
        "trial_id": cell.trial_id,
    }


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``metrics.csv``; ValueError where it is none."""
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")), strict=True)
    names = reader.fieldnames or ()
    if "epoch" not in names or not all(_COLUMN.fullmatch(name) for name in names):
        raise ValueError("its header is none of ours")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not one value a column")
        for value in row.values():
            if value:
                float(value)
        yield row


def _plain(value: Any) -> Any:
    """As CSV has it: nothing for what a frame has no value for, and whole numbers as such."""
    return "" if pd.isna(value) else value


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
