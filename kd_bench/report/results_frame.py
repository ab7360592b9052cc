"""Trial folders to one tidy frame: a row for every trial that was planned, whether or not it was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from kd_bench.report.protocol import protocol

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

Status = Literal["done", "failed", "missing", "unreadable"]

#: Fields of ``result.json``: accuracies in percent, other numbers, and counts.
PERCENTAGES = ("top1_last", "top1_best", "top5_last", "teacher_top1")
NUMBERS = ("seconds", "seconds_per_epoch", "images_per_second")
COUNTS = ("best_epoch", "epochs", "parameters", "cohort", "peak_memory_bytes")

_TEACHERS_OWN = {
    "teacher_status": "status",
    "teacher_reason": "reason",
    "teacher_top1": "top1_last",
    "teacher_top1_best": "top1_best",
    "teacher_epochs": "epochs",
    "teacher_seconds_per_epoch": "seconds_per_epoch",
}
_LARGEST = 2**62  # fits the frame's integers


def read_results(folder: Path, planned: Sequence[PlannedTrial], teachers: Path | None = None) -> pd.DataFrame:
    """One row a planned cell, in the order of ``planned``.

    Only ``result.json`` of each trial is read. A trial that several pairs share (the student alone) is read once and
    has a row in each pair.

    Args:
        folder: The recipe's folder, with a folder for each trial.
        planned: What the recipe expands to.
        teachers: Folder with the teachers' own trials; by default ``teachers`` beside ``folder``.

    Returns:
        Columns ``dataset, teacher, student, label, method, seed, trial_id, teacher_id`` (``teacher`` is
        empty for a pair without one); ``status`` (done, failed,
        missing or unreadable) and ``reason`` (text, absent for done); ``protocol`` (JSON, equal where trials were
        trained alike); the fields of ``result.json`` (accuracies in
        percent, times in seconds, NA where a trial has none); and of the teacher ``teacher_status``,
        ``teacher_reason``, ``teacher_top1`` (its own trial's last epoch, else what the student's trial measured),
        ``teacher_top1_best``, ``teacher_epochs``, ``teacher_seconds_per_epoch``.
    """
    read = cache(read_result)
    teachers = folder.parent / "teachers" if teachers is None else teachers
    rows = []
    for cell in planned:
        row: dict[str, Any] = {
            "dataset": cell.dataset,
            "teacher": "" if cell.teacher == "-" else cell.teacher,
            "student": cell.student,
            "label": cell.label,
            "method": cell.method,
            "seed": cell.seed,
            "trial_id": cell.trial_id,
            "teacher_id": cell.teacher_id,
            **read(folder / cell.trial_id),
        }
        of_teacher = read(teachers / cell.teacher_id) if cell.teacher_id else {}
        for column, field in _TEACHERS_OWN.items():
            row[column] = of_teacher.get(field, row.get(column))
        row["protocol"] = protocol(cell, row.get("epochs") if row["status"] == "done" else None)
        rows.append(row)
    return _typed(rows)


def read_result(trial: Path) -> dict[str, Any]:
    """``status``, ``reason`` and the known fields of a trial folder's ``result.json``; absent fields are left out.

    A file that cannot be read, or that says something impossible, gives the status "unreadable" with the reason.
    """
    try:
        result = json.loads((trial / "result.json").read_bytes())
        return _checked(result)
    except FileNotFoundError:
        return {"status": "missing", "reason": "there is no result.json yet"}
    except OSError as error:
        return _unreadable(f"cannot be opened: {error.strerror}")
    except json.JSONDecodeError as error:
        return _unreadable(f"is no JSON (line {error.lineno}, column {error.colno}: {error.msg})")
    except (ValueError, RecursionError) as error:
        return _unreadable(str(error))


def _unreadable(why: str) -> dict[str, Any]:
    return {"status": "unreadable", "reason": _one_line(f"result.json {why}")}


def _checked(result: Any) -> dict[str, Any]:
    """The fields of a parsed ``result.json``; ValueError where it breaks its contract."""
    if not isinstance(result, dict):
        raise ValueError("holds no mapping")
    status = result.get("status")
    if status not in ("done", "failed"):
        raise ValueError(f"has the status {status!r}, which is neither 'done' nor 'failed'")
    fields: dict[str, Any] = {"status": status}
    if status == "failed":
        fields["reason"] = _one_line(str(result.get("reason") or "no reason was recorded"))
    for key in (*PERCENTAGES, *NUMBERS, *COUNTS):
        value = result.get(key)
        if value is None:
            if status == "done" and key in ("top1_last", "top1_best"):
                raise ValueError(f"says done and has no {key}")
            continue
        of_kind = isinstance(value, int if key in COUNTS else int | float) and not isinstance(value, bool)
        # NaN fails both comparisons
        if not (of_kind and 0 <= value <= (100 if key in PERCENTAGES else _LARGEST)):
            kind = "percentage" if key in PERCENTAGES else "count" if key in COUNTS else "positive number"
            raise ValueError(f"has {key} = {str(value)[:40]}, which is no {kind}")
        fields[key] = value
    finished = result.get("finished")
    if finished is not None:
        fields["finished"] = _one_line(str(finished))
    return fields


def _one_line(text: str) -> str:
    """Without line breaks, control characters and half surrogates, which would garble a terminal or end the program."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The frame, with the same columns and types whatever the rows hold."""
    kinds = {
        **dict.fromkeys(("dataset", "teacher", "student", "label", "method"), "string"),
        "seed": "int64",
        **dict.fromkeys(("trial_id", "teacher_id", "status", "reason", "protocol", "finished"), "string"),
        **dict.fromkeys((*PERCENTAGES, *NUMBERS), "float64"),
        **dict.fromkeys(COUNTS, "Int64"),
        **dict.fromkeys(("teacher_status", "teacher_reason"), "string"),
        **dict.fromkeys(("teacher_top1_best", "teacher_seconds_per_epoch"), "float64"),
        "teacher_epochs": "Int64",
    }
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=kind) for name, kind in kinds.items()})
