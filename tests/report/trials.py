"""Synthetic trial folders."""

import json
import re
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from kd_bench.config.trial import PretrainedTeacher, Trial, identity
from kd_bench.report.render import render
from kd_bench.report.summary import Summary
from kd_bench.report.summary_text import summary_tables
from tests.trials.folders import ENVIRONMENT, write_result

RESULT = {
    "top5_last": 88.0,
    "seconds": 120.0,
    "seconds_per_epoch": 4.0,
    "images_per_second": 512.0,
    "parameters": 78042,
    "cohort": 4,
    "teacher_top1": 97.0,
    "finished": "2026-11-23T12:00:00+00:00",
    "weights_sha256": "0" * 64,
}

#: Epochs of a trial, and its best one, unless a test says otherwise; epochs of teachers, which tests call t0, t1, ...
EPOCHS, BEST = 30, 27
TEACHER_EPOCHS = 40


def stand_in(name: str, epochs: int | None = None) -> dict[str, Any]:
    """Settings that no run would read. Their hash is the id of the trial that a test calls by this name."""
    return {"name": name, "epochs": epochs or (TEACHER_EPOCHS if re.fullmatch(r"t\d", name) else EPOCHS)}


def trial_id(name: str, epochs: int | None = None) -> str:
    """The id of a trial that a test calls by this name; an id as it is."""
    return name if re.fullmatch("[0-9a-f]{16}", name) else identity(stand_in(name, epochs))


@dataclass(frozen=True)
class Cell:
    """What ``kd_bench.config.trial.PlannedTrial`` offers to the report. Names become ids."""

    label: str
    seed: int
    trial_id: str
    teacher_id: str | None = "t0"
    teacher: str = "resnet20"
    student: str = "resnet8"
    method: str = ""
    dataset: str = "digits"
    epochs: InitVar[int | None] = None
    teacher_seed: int | None = None

    def __post_init__(self, epochs: int | None) -> None:
        object.__setattr__(self, "method", self.method or self.label)
        object.__setattr__(self, "trial_id", trial_id(self.trial_id, epochs))
        if self.teacher_id is not None:
            object.__setattr__(self, "teacher_id", trial_id(self.teacher_id))


def put(folder: Path, **fields: Any) -> Path:
    """Writes the files of a finished trial, all but the weights. ``fields`` are keys of its ``result.json``.

    The folder has the name of a stand-in, and the trial its id; or it has settings already, as ``write_trial`` writes
    them.
    """
    folder, settings = _begin(folder, fields.get("epochs"))
    epochs = 0 if "weights" in settings else settings["epochs"]
    top1 = fields.get("top1_last", 60.0)
    best = fields.get("top1_best", max(top1, 61.0))
    best_epoch = (min(BEST, epochs - 1) if epochs > 1 else 1) if best != top1 else max(1, epochs)
    values = {"top1_last": top1, "top1_best": best, "best_epoch": best_epoch, "epochs": epochs, **RESULT, **fields}
    write_result(folder, settings, **values)
    return folder


def write_trial(folder: Path, trial: Trial | PretrainedTeacher, remark: str = "") -> None:
    """Writes settings and environment; ``remark`` is in the environment's command."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.json").write_text(json.dumps(trial.settings()))
    command = f"kd-bench run RECIPE --out runs {remark}".strip()
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | {"command": command}))


def fail(folder: Path, reason: str | None = "the loss is not finite in epoch 3") -> Path:
    """Writes the least that a failed trial says."""
    folder, _ = _begin(folder, None)
    (folder / "result.json").write_text(
        json.dumps({"status": "failed", "reason": reason, "epochs": 2, "parameters": 78042})
    )
    return folder


def begin(folder: Path) -> Path:
    """Writes the settings of a trial without a result."""
    return _begin(folder, None)[0]


def _begin(folder: Path, epochs: int | None) -> tuple[Path, Mapping[str, Any]]:
    name, folder = folder.name, folder.parent / trial_id(folder.name, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "trial.json").exists():
        (folder / "trial.json").write_text(json.dumps(stand_in(name, epochs)))
    if not (folder / "environment.json").exists():
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder, json.loads((folder / "trial.json").read_text())


def plan(
    folder: Path, accuracies: dict[str, list[float | None]], epochs: Mapping[str, int] | None = None, **pair: Any
) -> list[Cell]:
    """A trial a seed for each label, with these last-epoch accuracies (None: not run); the best epoch is 1 higher.

    ``epochs`` are those of labels whose trials do not have the usual number.
    """
    cells = []
    for label, values in accuracies.items():
        length = (epochs or {}).get(label)
        for seed, value in enumerate(values):
            name = f"{pair.get('teacher', '')}{label}{seed}"
            cells.append(Cell(label, seed, name, epochs=length, **pair))
            if value is not None:
                put(folder / name, top1_last=value, top1_best=value + 1, **({"epochs": length} if length else {}))
    return cells


def plan_crossed(
    folder: Path, values: Mapping[str, Mapping[tuple[int, int], float | None]], alone: Mapping[int, float] | None = None
) -> list[Cell]:
    """A trial for each label and cell (teacher's seed, seed), and for each seed of the student alone; None: not run."""
    cells = []
    for seed, value in (alone or {}).items():
        cells.append(Cell("none", seed, f"none{seed}", "t0"))
        put(folder / f"none{seed}", top1_last=value, top1_best=value + 1)
    for label, of_label in values.items():
        for (teacher, seed), top1 in of_label.items():
            name = f"{label}-{teacher}-{seed}"
            cells.append(Cell(label, seed, name, f"t{teacher}", teacher_seed=teacher))
            if top1 is not None:
                put(folder / name, top1_last=top1, top1_best=top1 + 1, teacher_top1=90.0 + teacher)
    return cells


def render_summary(
    summary: Summary, format: str, *, width: int = 80, colour: bool = False, ascii_only: bool = False
) -> str:
    """The summary as text, as ``write_summary`` prints it on a terminal of this width."""
    tables, notes = summary_tables(summary, format)
    return render(tables, format, notes=notes, width=width, colour=colour, ascii_only=ascii_only, floating=True)
