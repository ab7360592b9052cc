"""Reads evaluations of robustness from trial folders, and makes tables of them. Never imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError

from kd_bench.config.attack import Attack, chained, is_pgd, title
from kd_bench.report.render import DASH, Column, Table, TableRow
from kd_bench.report.results_frame import trial_columns
from kd_bench.report.statistics import Difference, MeanAndStd, estimate, paired_difference

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: Folder of evaluations in a trial's folder.
FOLDER = "attacks"

CLEAN = "clean"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. Accuracies are top-1 in percent.

    Attributes:
        attack: Its settings.
        images: Number of attacked images.
        of: Number of images in the test set.
        accuracy: Accuracy after each attack, ``clean`` first.
        robust: Accuracy after all attacks.
        complete: Whether ``robust`` is the accuracy under standard AutoAttack; otherwise it is an upper bound of it.
        skipped: Attacks that need more classes than the dataset has.
        warnings: Reasons to doubt the numbers.
        weights: SHA-256 of the attacked weights.
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
        """Titles of a table's columns by key of ``accuracy``. FAB-T has no column in complete evaluations."""
        names = [name for name in self.accuracy if name != CLEAN]
        last = chained(names)[-1]
        left_out = {last, "fab-t"} if self.complete else {last}
        titles = {name: title(name) for name in names if name not in left_out}
        return {CLEAN: "clean", **titles, last: "AA" if self.complete else f"{title(last)} (upper bound)"}

    @property
    def description(self) -> str:
        """Attack and images, as in ``Linf 8/255, 100 of 10000 images``."""
        images = f"{self.images} images" if self.images == self.of else f"{self.images} of {self.of} images"
        return f"{self.attack.title}, {images}"


def read_evaluation(file: Path) -> Evaluation | None:
    """Reads a finished evaluation. Returns None if it is not finished or the file is damaged."""
    try:
        content = json.loads(file.read_bytes())
        if content.get("kind") != "attack" or content.get("status") != "done":
            return None
        accuracy = {str(name): _percent(value) for name, value in content["accuracy"].items()}
        attack = Attack.model_validate_json(json.dumps(content["attack"]))
        skipped = tuple(map(str, content["skipped"]))
        return Evaluation(
            attack=attack,
            images=int(content["images"]),
            of=int(content["of"]),
            accuracy={name: accuracy[name] for name in (CLEAN, *attack.attacks) if name not in skipped},
            robust=_percent(content["robust"]),
            complete=attack.complete and not skipped,
            skipped=skipped,
            warnings=tuple(map(str, content["warnings"])),
            weights=str(content["subject"]["weights"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
        return None


def read_evaluations(trial: Path) -> list[Evaluation]:
    """Reads the finished evaluations of a trial's present weights, sorted by norm and radius."""
    try:
        weights = str(json.loads((trial / "result.json").read_bytes())["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        weights = None
    evaluations = [read_evaluation(file) for file in sorted((trial / FOLDER).glob("*.json"))]
    current = [item for item in evaluations if item is not None and weights in (None, item.weights)]
    return sorted(current, key=lambda evaluation: (evaluation.attack.norm, evaluation.attack.eps))


def attack_frame(folder: Path, planned: Sequence[PlannedTrial]) -> pd.DataFrame:
    """Returns a row for each evaluation of each planned cell.

    Args:
        folder: The recipe's folder, with a folder for each trial.
        planned: The trials of the recipe.

    Returns:
        The columns of ``trial_columns``, ``attack_id``, ``norm``, ``eps``, and ``evaluation``, the ``Evaluation``.
    """
    read = cache(read_evaluations)
    rows = [
        {
            **trial_columns(cell),
            "attack_id": evaluation.attack.id,
            "norm": evaluation.attack.norm,
            "eps": evaluation.attack.eps,
            "evaluation": evaluation,
        }
        for cell in planned
        for evaluation in read(folder / cell.trial_id)
    ]
    columns = ["dataset", "teacher", "student", "label", "method", "seed", "trial_id", "attack_id", "norm", "eps"]
    return pd.DataFrame(rows, columns=[*columns, "evaluation"])


@dataclass(frozen=True)
class AttackRow:
    """The row of a method or of a single network.

    Attributes:
        label: Label of the row.
        values: Mean and standard deviation over seeds, by key of the table's columns.
        difference: Last column minus the baseline's, paired by seed; None for the baseline, or without a baseline.
    """

    label: str
    values: dict[str, MeanAndStd]
    difference: Difference | None = None


@dataclass(frozen=True)
class AttackTable:
    """The rows of one pair, or of one network, under one attack.

    Attributes:
        title: Networks, dataset, attack and images.
        columns: Titles by key of the rows' values.
        rows: The rows.
        baseline: Label that differences are taken to; None for none.
        notes: Sentences below the table.
        kind: Whether the rows are of methods or of networks.
        norm_and_eps: Norm and radius of the attack; None for a single network.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[AttackRow, ...]
    baseline: str | None
    notes: tuple[str, ...]
    kind: str = "method"
    norm_and_eps: tuple[str, float] | None = None


def summarise_attacks(frame: pd.DataFrame, baseline: str = "kd") -> list[AttackTable]:
    """Returns tables of clean and robust accuracy by method, one for each pair and attack.

    Args:
        frame: From ``attack_frame``.
        baseline: Label of the row that the others are compared with.
    """
    keys = ["dataset", "teacher", "student", "norm", "eps", "attack_id"]
    return [
        _attack_table(f"{teacher} → {student}" if teacher else str(student), str(dataset), rows, baseline)
        for (dataset, teacher, student, *_), rows in frame.groupby(keys, sort=False)
    ]


def _attack_table(networks: str, dataset: str, frame: pd.DataFrame, baseline: str) -> AttackTable:
    evaluations: list[Evaluation] = frame["evaluation"].tolist()
    first, columns = evaluations[0], evaluations[0].columns
    last = list(columns)[-1]
    by_label: dict[str, dict[int, Evaluation]] = {}
    for label, seed, evaluation in zip(frame["label"], frame["seed"], evaluations, strict=True):
        by_label.setdefault(label, {})[seed] = evaluation
    robust = {
        label: {seed: evaluation.accuracy[last] for seed, evaluation in by_seed.items()}
        for label, by_seed in by_label.items()
    }
    compared = robust.get(baseline, {})
    rows = [
        AttackRow(
            label,
            _means(by_seed.values(), columns),
            paired_difference(robust[label], compared) if label != baseline else None,
        )
        for label, by_seed in by_label.items()
    ]
    notes = _notes([evaluation for by_seed in by_label.values() for evaluation in by_seed.values()], columns[last])
    if compared:
        notes.append(f"Difference: {columns[last]} minus that of {baseline} in percentage points, paired by seed, "
                     "with the 95 % interval of the paired t distribution.")  # fmt: skip
    return AttackTable(
        f"{networks} on {dataset}, {first.description}",
        columns,
        tuple(rows),
        baseline if compared and len(by_label) > 1 else None,
        tuple(notes),
        norm_and_eps=(first.attack.norm, first.attack.eps),
    )


def _means(evaluations: Collection[Evaluation], columns: Iterable[str]) -> dict[str, MeanAndStd]:
    means = {key: estimate([evaluation.accuracy[key] for evaluation in evaluations]) for key in columns}
    return {key: mean for key, mean in means.items() if mean}


def network_table(name: str, about: str, evaluation: Evaluation) -> AttackTable:
    """Returns the table of one network.

    Args:
        name: The network's name in its row.
        about: Network and dataset.
        evaluation: The evaluation.
    """
    columns = evaluation.columns
    row = AttackRow(name, _means([evaluation], columns))
    notes = tuple(_notes([evaluation], list(columns.values())[-1])[1:])
    return AttackTable(f"{about}, {evaluation.description}", columns, (row,), None, notes, "network")


def render_tables(tables: Sequence[AttackTable], format: str) -> list[Table]:
    """Returns the tables for ``render``. "csv" is one table with a row for each number, in full precision."""
    return [_csv_table(tables)] if format == "csv" else [_text_table(table) for table in tables]


def _text_table(table: AttackTable) -> Table:
    """A row for each method or network, with the number of trials and the difference if there are any."""
    headers = [table.kind, *(f"{name} %" for name in table.columns.values())]
    headers += ["n"] * (table.kind == "method") + [f"difference to {table.baseline}"] * (table.baseline is not None)
    rows = []
    for row in table.rows:
        cells = [row.label, *(str(row.values[key]) for key in table.columns)]
        if table.kind == "method":
            cells.append(str(max(value.n for value in row.values.values())))
        if table.baseline is not None:
            cells.append(_interval(row.difference))
        rows.append(TableRow(cells))
    return Table(table.title, tuple(Column((header,)) for header in headers), (tuple(rows),), table.notes)


def _csv_table(tables: Sequence[AttackTable]) -> Table:
    rows = []
    for table in tables:
        for row in table.rows:
            for key, name in table.columns.items():
                value, difference = row.values[key], row.difference if key == list(table.columns)[-1] else None
                interval = (difference.mean, difference.low, difference.high) if difference else (None, None, None)
                rows.append(TableRow([table.title, row.label, name, value.mean, value.std, value.n, *interval]))
    names = ("table", "label", "column", "mean", "std", "n", "difference", "low", "high")
    return Table("", tuple(Column((name,)) for name in names), (tuple(rows),))


def _notes(evaluations: Sequence[Evaluation], last: str) -> list[str]:
    """The meaning of the columns, that of mean and standard deviation first."""
    first = evaluations[0]
    notes = ["Top-1 accuracy in percent; mean ± sample standard deviation (ddof = 1) over n trials."]
    if len([name for name in first.accuracy if name != CLEAN and not is_pgd(name)]) > 1:
        notes.append("Each attack continues with the images that are still classified correctly (PGD with all images).")
    if first.complete:
        notes.append("AA: accuracy under standard AutoAttack; the columns before it are upper bounds of it.")
    else:
        reason = f" ({', '.join(map(title, first.skipped))} needs more classes)" if first.skipped else ""
        notes.append(f"{last}: not all of standard AutoAttack was run{reason}, so the number is an upper bound of the "
                     "accuracy under it.")  # fmt: skip
    if first.images < first.of:
        error = 50 / math.sqrt(first.images)
        notes.append(f"On {first.images} of {first.of} test images, evenly over the classes: the sample alone gives a "
                     f"standard error of up to {error:.1f} points.")  # fmt: skip
    warnings = dict.fromkeys(warning for evaluation in evaluations for warning in evaluation.warnings)
    return [*notes, *(f"Doubtful: {warning}." for warning in warnings)]


def _interval(value: Difference | None) -> str:
    if value is None:
        return DASH
    if value.low is None or value.high is None:
        return f"{value.mean:+.2f}"
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _percent(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 100:
        raise ValueError(f"{value} is no percentage")
    return number
