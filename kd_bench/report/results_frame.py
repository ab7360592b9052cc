"""Reads the results in trial folders into one tidy frame, with one row for every planned trial, run or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_bench.report.devices import device_of
from kd_bench.report.protocol import protocol
from kd_bench.trials.reader import TrialRecord, read_trial

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: Fields of ``result.json``: accuracies in percent, other numbers, and counts.
PERCENTAGES = ("top1_last", "top1_best", "top5_last", "teacher_top1", "val_top1_last", "top1_val_best")
NUMBERS = ("seconds", "seconds_per_epoch", "images_per_second")
COUNTS = ("best_epoch", "epochs", "parameters", "kept_parameters", "cohort", "peak_memory_bytes")

_CELL_COLUMNS = ("dataset", "student", "label", "method", "seed", "trial_id", "teacher_id")

#: Columns about the teacher's own trial, with the fields of its ``result.json``.
_TEACHER_COLUMNS = {
    "teacher_status": "status",
    "teacher_reason": "reason",
    "teacher_top1": "top1_last",
    "teacher_top1_best": "top1_best",
    "teacher_epochs": "epochs",
    "teacher_seconds_per_epoch": "seconds_per_epoch",
    "teacher_images": "images",
    "teacher_images_kind": "images_kind",
}

#: Columns about the images of a trial.
IMAGES = ("images", "images_kind")


def read_results(folder: Path, planned: Sequence[PlannedTrial], teachers: Path | None = None) -> pd.DataFrame:
    """Reads the ``result.json`` of each planned trial and returns a frame with one row a cell, in the order of
    ``planned``.

    A trial that several pairs share (the student alone) is read once and has a row in each pair.

    Args:
        folder: The recipe's folder, with a folder for each trial.
        planned: The trials of the recipe.
        teachers: Folder with the teachers' own trials; by default ``teachers`` beside ``folder``.

    Returns:
        ``dataset``, ``teacher`` (empty for a pair without one), ``student``, ``label``, ``method``, ``seed``,
        ``trial_id`` and ``teacher_id`` of the cell; ``teacher_seed`` (NA for a trial without a teacher, and for a
        pretrained teacher); ``status`` (done, failed, missing or damaged) and ``reason``
        (text, absent for done); ``protocol`` (JSON, equal for trials that were trained alike); the fields of
        ``result.json`` (accuracies in percent, times in seconds, NA if a trial has none); and for the teacher
        ``teacher_status``, ``teacher_reason``, ``teacher_top1`` (last epoch of its own trial, otherwise the value that
        the student's trial measured; NA if its own trial is damaged), ``teacher_top1_best``, ``teacher_epochs``,
        ``teacher_seconds_per_epoch``. ``images`` and ``images_kind`` (and the same of the teacher) are the digest of
        the images and what was digested; absent for results of earlier versions. ``evaluated`` says which weights were
        tested, of trials that have several kinds. ``device`` names the device that trained, NA if that is not known.
    """
    read = cache(read_result)
    rows = []
    for cell in planned:
        row = {key: getattr(cell, key) for key in _CELL_COLUMNS}
        row |= {"teacher_seed": getattr(cell, "teacher_seed", None)}
        row |= {"teacher": teacher_name(cell), **read(folder / cell.trial_id)}
        teacher = read((teachers or folder.parent / "teachers") / cell.teacher_id) if cell.teacher_id else {}
        for column, field in _TEACHER_COLUMNS.items():
            row[column] = teacher.get(field, None if teacher.get("status") == "damaged" else row.get(column))
        epochs = row.get("epochs") if row["status"] == "done" else None
        row["protocol"] = protocol(getattr(cell, "trial", None), epochs)
        rows.append(row)
    return _typed(rows)


def teacher_name(cell: PlannedTrial) -> str:
    """Returns the teacher of a cell's pair; empty for a pair without one."""
    return "" if cell.teacher == "-" else cell.teacher


def read_result(trial: Path) -> dict[str, Any]:
    """Reads the known fields of a trial's ``result.json``, with ``status`` and ``reason``.

    A trial whose files are damaged, disagree or were changed by hand has the status "damaged" and the reason.
    """
    return result_fields(read_trial(trial))


def result_fields(record: TrialRecord) -> dict[str, Any]:
    """Returns what ``read_result`` returns, for a trial that was read already."""
    if record.is_damaged:
        return {"status": "damaged", "reason": _one_line(str(record.faults[0]))}
    result = record.result
    if result is None and record.failure:
        return {"status": "failed", "reason": f"{_one_line(record.failure)}; the next run tries again"}
    if result is None:
        return {"status": "missing", "reason": "there is no result.json yet"}
    keys = (*PERCENTAGES, *NUMBERS, *COUNTS)
    fields: dict[str, Any] = {key: result[key] for key in keys if result.get(key) is not None}
    fields["status"] = result["status"]
    if result["status"] == "failed":
        fields["reason"] = _one_line(result.get("reason") or "no reason was recorded")
    if images := result.get("images"):
        fields |= {"images": images["digest"], "images_kind": _one_line(images["kind"])}
    if result.get("evaluated") is not None:
        fields["evaluated"] = _one_line(result["evaluated"])
    if result.get("finished") is not None:
        fields["finished"] = _one_line(result["finished"])
    if device := device_of(record.environment):
        fields["device"] = _one_line(device)
    return fields


def _one_line(text: str) -> str:
    """Returns text without line breaks, control characters and surrogates, which could garble a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Returns the frame. Columns and types do not depend on the rows."""
    kinds = {
        **dict.fromkeys(("dataset", "teacher", "student", "label", "method"), "string"),
        "seed": "int64",
        "teacher_seed": "Int64",
        **dict.fromkeys(
            ("trial_id", "teacher_id", "status", "reason", "protocol", "evaluated", "finished", "device"), "string"
        ),
        **dict.fromkeys((*PERCENTAGES, *NUMBERS), "float64"),
        **dict.fromkeys(COUNTS, "Int64"),
        **dict.fromkeys((*IMAGES, "teacher_images", "teacher_images_kind"), "string"),
        **dict.fromkeys(("teacher_status", "teacher_reason"), "string"),
        **dict.fromkeys(("teacher_top1_best", "teacher_seconds_per_epoch"), "float64"),
        "teacher_epochs": "Int64",
    }
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=kind) for name, kind in kinds.items()})
