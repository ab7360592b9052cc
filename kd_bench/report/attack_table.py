"""Evaluations of robustness: from the files in trial folders to a frame, statistics and text. Never imports torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError

from kd_bench.config.attack import Attack, chained, is_pgd, title
from kd_bench.report.statistics import Difference, MeanAndStd, estimate, paired_difference
from kd_bench.utils.errors import unknown

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

FORMATS = ("terminal", "markdown", "plain", "latex", "csv")

#: Folder of evaluations in a trial's.
FOLDER = "attacks"

CLEAN = "clean"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. Accuracies are top-1 in percent.

    Attributes:
        attack: Its settings.
        images: How many were attacked.
        of: How many the test set has.
        accuracy: What stands after each attack that was run, ``clean`` first.
        robust: What stands in the end.
        complete: Whether that is the accuracy under standard AutoAttack; otherwise it is an upper bound of it.
        skipped: Attacks that need more classes than there are.
        warnings: What makes the numbers doubtful.
        weights: SHA-256 of the file that was attacked.
    """

    attack: Attack
    images: int
    of: int
    accuracy: dict[str, float]
    robust: float
    complete: bool
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: str

    @property
    def columns(self) -> dict[str, str]:
        """What a table shows of it: titles by key of ``accuracy``. FAB-T is told apart in files only."""
        run = [name for name in self.accuracy if name != CLEAN]
        last = chained(run)[-1]
        left_out = {"fab-t"} if self.complete else set()
        shown = {name: title(name) for name in run if name != last and name not in left_out}
        return {CLEAN: "clean", **shown, last: "AA" if self.complete else f"{title(last)} (upper bound)"}

    @property
    def about(self) -> str:
        """What it is of, for people: ``Linf 8/255, 100 of 10000 images``."""
        images = f"{self.images} images" if self.images == self.of else f"{self.images} of {self.of} images"
        return f"{self.attack.title}, {images}"


def read_evaluation(file: Path) -> Evaluation | None:
    """A finished evaluation; None for one that is not finished, or a file that holds none."""
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict) or found.get("kind") != "attack" or found.get("status") != "done":
            return None
        accuracy = {str(name): _percent(value) for name, value in found["accuracy"].items()}
        attack = Attack.model_validate_json(json.dumps(found["attack"]))
        skipped = tuple(map(str, found["skipped"]))
        return Evaluation(
            attack=attack,
            images=int(found["images"]),
            of=int(found["of"]),
            accuracy={name: accuracy[name] for name in (CLEAN, *attack.attacks) if name not in skipped},
            robust=_percent(found["robust"]),
            complete=attack.complete and not skipped,
            skipped=skipped,
            warnings=tuple(map(str, found["warnings"])),
            weights=str(found["subject"]["weights"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
        return None


def read_evaluations(trial: Path) -> list[Evaluation]:
    """The finished evaluations in a trial's folder, by norm and rising radius; none of weights of before."""
    files = sorted((trial / FOLDER).glob("*.json"))
    weights = _weights(trial)
    found = [one for one in map(read_evaluation, files) if one is not None and weights in (None, one.weights)]
    return sorted(found, key=lambda one: (one.attack.norm, one.attack.eps))


def attack_frame(folder: Path, planned: Sequence[PlannedTrial]) -> pd.DataFrame:
    """A row for each evaluation of each planned cell.

    Args:
        folder: The recipe's folder, with a folder for each trial.
        planned: What the recipe expands to.

    Returns:
        Columns ``dataset, teacher, student, label, method, seed, trial_id``; ``attack_id``, ``norm``, ``eps``,
        ``images``, ``clean`` and ``robust`` (percent), ``robust_is_aa`` (bool; otherwise it is an upper bound), and
        ``evaluation``, the ``Evaluation``.
    """
    read = cache(read_evaluations)
    rows = [
        {
            "dataset": cell.dataset,
            "teacher": "" if cell.teacher == "-" else cell.teacher,
            "student": cell.student,
            "label": cell.label,
            "method": cell.method,
            "seed": cell.seed,
            "trial_id": cell.trial_id,
            "attack_id": one.attack.id,
            "norm": one.attack.norm,
            "eps": one.attack.eps,
            "images": one.images,
            "clean": one.accuracy[CLEAN],
            "robust": one.robust,
            "robust_is_aa": one.complete,
            "evaluation": one,
        }
        for cell in planned
        for one in read(folder / cell.trial_id)
    ]
    columns = ("dataset", "teacher", "student", "label", "method", "seed", "trial_id", "attack_id", "norm", "eps")
    return pd.DataFrame(rows, columns=[*columns, "images", "clean", "robust", "robust_is_aa", "evaluation"])


@dataclass(frozen=True)
class AttackRow:
    """A line: a method, or a single network.

    Attributes:
        label: Of the line.
        values: Mean and spread over seeds, by the table's columns.
        difference: Of the last column to the baseline's, paired by seed; None for the baseline and without one.
    """

    label: str
    values: dict[str, MeanAndStd]
    difference: Difference | None = None


@dataclass(frozen=True)
class AttackTable:
    """The lines of one pair under one attack.

    Attributes:
        title: What they are of.
        columns: Titles by key of the rows' values.
        rows: The lines.
        baseline: Label that differences are taken to; None for none.
        notes: Sentences below it.
        kind: What the lines are of.
        ball: Norm and radius of the attack; None where it does not matter.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[AttackRow, ...]
    baseline: str | None
    notes: tuple[str, ...]
    kind: str = "method"
    ball: tuple[str, float] | None = None


def summarise_attacks(frame: pd.DataFrame, baseline: str = "kd") -> list[AttackTable]:
    """Tables of clean and robust accuracy by method, one for each pair and attack.

    Args:
        frame: From ``attack_frame``.
        baseline: Label of the line that the others are compared with.
    """
    tables = []
    keys = ["dataset", "teacher", "student", "norm", "eps", "attack_id"]
    for (dataset, teacher, student, *_), cells in frame.groupby(keys, sort=False):
        first: Evaluation = cells["evaluation"].iloc[0]
        columns = first.columns
        last = list(columns)[-1]
        by_label = {
            str(label): dict(zip(of_one["seed"].tolist(), of_one["evaluation"].tolist(), strict=True))
            for label, of_one in cells.groupby("label", sort=False)
        }
        compared = {seed: one.accuracy[last] for seed, one in by_label.get(baseline, {}).items()}
        rows = []
        for label, evaluations in by_label.items():
            values = {key: estimate([one.accuracy[key] for one in evaluations.values()]) for key in columns}
            robust = {seed: one.accuracy[last] for seed, one in evaluations.items()}
            difference = paired_difference(robust, compared) if label != baseline else None
            rows.append(AttackRow(label, {key: value for key, value in values.items() if value}, difference))
        networks = f"{teacher} → {student}" if teacher else str(student)
        every = [one for evaluations in by_label.values() for one in evaluations.values()]
        notes = _notes(every, columns[last])
        if compared:
            notes.append(f"Difference: {columns[last]} minus that of {baseline} in percentage points, paired by seed, "
                         "with the 95 % interval of the paired t distribution.")  # fmt: skip
        known = baseline if compared and len(by_label) > 1 else None
        title = f"{networks} on {dataset}, {first.about}"
        ball = (first.attack.norm, first.attack.eps)
        tables.append(AttackTable(title, columns, tuple(rows), known, tuple(notes), ball=ball))
    return tables


def table_of(name: str, about: str, evaluation: Evaluation) -> AttackTable:
    """The table of one network.

    Args:
        name: Of the network, for its line.
        about: What it is and of which images.
        evaluation: The evaluation.
    """
    columns = evaluation.columns
    values = {key: MeanAndStd(evaluation.accuracy[key], None, 1) for key in columns}
    notes = tuple(_notes([evaluation], list(columns.values())[-1])[1:])
    return AttackTable(f"{about}, {evaluation.about}", columns, (AttackRow(name, values),), None, notes, "network")


def render_attacks(tables: Sequence[AttackTable], format_: str, *, ascii_only: bool = False) -> str:
    """Tables as text that ends with a line break; "csv" has full precision and no notes.

    Args:
        tables: What to show.
        format_: One of ``FORMATS``.
        ascii_only: Spells what ASCII lacks.

    Raises:
        UserError: There is no such format.
    """
    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")
    if format_ == "csv":
        return _csv(tables)
    from tabulate import tabulate

    blocks = []
    for table in tables:
        headers = [table.kind, *(f"{name} %" for name in table.columns.values())]
        rows = [[row.label, *(_spread(row.values[key]) for key in table.columns)] for row in table.rows]
        if table.kind == "method":
            headers.append("n")
            for cells, row in zip(rows, table.rows, strict=True):
                cells.append(str(max(value.n for value in row.values.values())))
        if table.baseline is not None:
            headers.append(f"difference to {table.baseline}")
            for cells, row in zip(rows, table.rows, strict=True):
                cells.append(_interval(row.difference))
        kind = {"markdown": "pipe", "latex": "latex_booktabs"}.get(format_, "simple")
        text = tabulate(rows, headers, tablefmt=kind, disable_numparse=True)
        mark = {"markdown": "### ", "latex": "% "}.get(format_, "")
        bullet = {"markdown": "- ", "latex": "% "}.get(format_, "")
        notes = "".join(f"{bullet}{note}\n" for note in table.notes)
        blocks.append(f"{mark}{table.title}\n\n{text}\n\n{notes}")
    whole = "\n".join(blocks)
    if ascii_only:
        whole = whole.replace("±", "+-").replace("→", "->").replace("–", "-")
        whole = whole.encode("ascii", "backslashreplace").decode()
    return whole


def _notes(evaluations: Sequence[Evaluation], last: str) -> list[str]:
    """What the columns mean, the spread first."""
    first = evaluations[0]
    notes = ["Top-1 accuracy in percent; mean ± sample standard deviation (ddof = 1) over n trials."]
    if len([name for name in first.accuracy if name != CLEAN and not is_pgd(name)]) > 1:
        notes.append("An attack goes on with the images that still stand after those before it (PGD with all).")
    if first.complete:
        notes.append("AA: accuracy under standard AutoAttack; the columns before it are upper bounds of it.")
    else:
        reason = f" ({', '.join(map(title, first.skipped))} needs more classes)" if first.skipped else ""
        notes.append(f"{last}: not all of standard AutoAttack was run{reason}, so the number is an upper bound of the "
                     "accuracy under it.")  # fmt: skip
    if first.images < first.of:
        most = 50 / math.sqrt(first.images)
        notes.append(f"On {first.images} of {first.of} test images, evenly over the classes: the sample alone gives a "
                     f"standard error of up to {most:.1f} points.")  # fmt: skip
    warnings = dict.fromkeys(line for one in evaluations for line in one.warnings)
    return [*notes, *(f"Doubtful: {line}." for line in warnings)]


def _csv(tables: Sequence[AttackTable]) -> str:
    out = io.StringIO()
    header = ("table", "label", "column", "mean", "std", "n", "difference", "low", "high")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for table in tables:
        for row in table.rows:
            for key, name in table.columns.items():
                value = row.values[key]
                found = row.difference if key == list(table.columns)[-1] else None
                ends = (found.mean, found.low, found.high) if found else (None, None, None)
                writer.writerow([table.title, row.label, name, value.mean, value.std, value.n, *ends])
    return out.getvalue()


def _spread(value: MeanAndStd) -> str:
    return f"{value.mean:5.2f}" if value.std is None else f"{value.mean:5.2f} ± {value.std:.2f}"


def _interval(value: Difference | None) -> str:
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return f"{value.mean:+.2f}"
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _weights(trial: Path) -> str | None:
    """SHA-256 of the trial's weights, where its result tells."""
    try:
        found = json.loads((trial / "result.json").read_bytes())
        return str(found["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _percent(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 100:
        raise ValueError(f"{value} is no percentage")
    return number
