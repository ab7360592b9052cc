"""Environment, learning curves and accuracy by class of a trial, for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_bench.trials.confusion import Row, parse_rows
from kd_bench.trials.reader import TrialRecord, read_trial

#: Columns of ``metrics.csv`` that are shown as curves.
CURVES = ("top1", "train_top1", "test_loss", "train_loss")


@dataclass(frozen=True)
class TrialDetails:
    """The content of one trial's files. A damaged trial has only problems.

    Attributes:
        environment: Content of ``environment.json``; empty if there is none.
        curves: Values by epoch of the columns in ``CURVES`` that it has; None for values that are not finite.
        classes: Top-1 in percent by class after the last epoch, None for a class without images; empty if it was not
            recorded.
        class_names: Names of the classes; empty if they were not recorded.
        confusion: For each true class the number of its images by predicted class; empty if it was not recorded.
        problems: Files that are damaged, with the reason.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[float | None]] = field(default_factory=dict)
    classes: tuple[float | None, ...] = ()
    class_names: tuple[str, ...] = ()
    confusion: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()


def read_details(folder: Path) -> TrialDetails:
    """Reads the files of a trial. Files that are missing or damaged are left out."""
    record = read_trial(folder)
    problems = tuple(map(str, (*record.faults, *record.remarks)))
    if record.is_damaged:
        return TrialDetails(problems=problems)
    result = record.result if record.result and record.verdict == "done" else {}
    return TrialDetails(
        record.environment,
        _curves(record),
        tuple(result.get("class_top1_last") or ()),
        tuple(result.get("class_names") or ()),
        tuple(parse_rows(result.get("confusion_last") or ())),
        problems,
    )


def _curves(record: TrialRecord) -> dict[str, list[float | None]]:
    columns = record.metrics.columns if record.metrics else {}
    return {
        name: [value if value is not None and math.isfinite(value) else None for value in columns[name]]
        for name in CURVES
        if name in columns
    }
