"""Synthetic trial folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.report.render import render
from kd_bench.report.summary import Summary
from kd_bench.report.summary_text import summary_tables

RESULT = {
    "status": "done",
    "reason": None,
    "top1_last": 60.0,
    "top1_best": 61.0,
    "best_epoch": 27,
    "top5_last": 88.0,
    "epochs": 30,
    "seconds": 120.0,
    "seconds_per_epoch": 4.0,
    "images_per_second": 512.0,
    "parameters": 78042,
    "cohort": 4,
    "teacher_top1": 97.0,
    "finished": "2026-11-23T12:00:00+00:00",
}


@dataclass(frozen=True)
class Cell:
    """What ``kd_bench.config.trial.PlannedTrial`` offers to the report."""

    label: str
    seed: int
    trial_id: str
    teacher_id: str | None = "t0"
    teacher: str = "resnet20"
    student: str = "resnet8"
    method: str = ""
    dataset: str = "digits"

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method or self.label)


def put(folder: Path, **fields: Any) -> None:
    """Writes the ``result.json`` of a trial."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({**RESULT, **fields}))


def fail(folder: Path, reason: str | None = "the loss is not finite in epoch 3") -> None:
    """Writes the least that a failed trial says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(
        json.dumps({"status": "failed", "reason": reason, "epochs": 2, "parameters": 78042})
    )


def plan(folder: Path, accuracies: dict[str, list[float | None]], **pair: Any) -> list[Cell]:
    """A trial a seed for each label, with these last-epoch accuracies (None: not run); the best epoch is 1 higher."""
    cells = []
    for label, values in accuracies.items():
        for seed, value in enumerate(values):
            cell = Cell(label, seed, f"{pair.get('teacher', '')}{label}{seed}", **pair)
            cells.append(cell)
            if value is not None:
                put(folder / cell.trial_id, top1_last=value, top1_best=value + 1)
    return cells


def render_summary(
    summary: Summary, format: str, *, width: int = 80, colour: bool = False, ascii_only: bool = False
) -> str:
    """The summary as text, as ``write_summary`` prints it on a terminal of this width."""
    tables, notes = summary_tables(summary, format)
    return render(tables, format, notes=notes, width=width, colour=colour, ascii_only=ascii_only, floating=True)
