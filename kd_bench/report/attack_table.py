"""Reads evaluations of robustness from trial folders, and makes tables of them. Never imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.attack import STANDARD, Attack, chained, is_pgd, pgd_steps, title
from kd_bench.report.crossed import Cell, difference_of_cells, estimate_cells, find_cells, is_taught
from kd_bench.report.render import DASH, Table, simple_table
from kd_bench.report.results_frame import teacher_name
from kd_bench.report.significance import Significance, correct, difference_tests, format_test
from kd_bench.report.statistics import Difference, MeanAndStd
from kd_bench.report.summary import ALONE, CONFIDENCE, baseline_name, student_name
from kd_bench.report.summary_text import format_difference
from kd_bench.trials.reader import read_trial
from kd_bench.utils.regular_files import BadFile, read_json_object
from kd_bench.utils.text import count

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
        """Titles of a table's columns by key of ``accuracy``. FAB-T has no column in complete evaluations.

        The accuracy after all attacks comes last. ``AA`` is followed by attacks that standard AutoAttack does not have.
        """
        names = [name for name in self.accuracy if name != CLEAN]
        attacks = chained(names)
        titles = {CLEAN: "clean"}
        for name in sorted(names, key=lambda name: name == attacks[-1]):
            run = attacks[: attacks.index(name) + 1] if name in attacks else ()
            if set(STANDARD) <= set(run):
                titles[name] = " + ".join(["AA", *(title(other) for other in run if other not in STANDARD)])
            elif name == attacks[-1]:
                titles[name] = f"{title(name)} (upper bound)"
            elif name != "fab-t" or not self.complete:
                titles[name] = title(name)
        return titles

    @property
    def description(self) -> str:
        """Attack and images, as in ``Linf 8/255, 100 of 10000 images``."""
        images = (
            count(self.images, "image") if self.images == self.of else f"{self.images} of {count(self.of, 'image')}"
        )
        return f"{self.attack.title}, {images}"


def read_evaluation(file: Path) -> Evaluation | None:
    """Reads a finished evaluation. Returns None if it is not finished or the file is damaged."""
    try:
        content = read_json_object(file) or {}
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
    except (BadFile, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def read_evaluations(trial: Path) -> list[Evaluation]:
    """Reads the finished evaluations of a finished trial's present weights, sorted by norm and radius."""
    files = sorted((trial / FOLDER).glob("*.json"))
    result = read_trial(trial).result if files else None
    if result is None or result["status"] != "done":
        return []
    evaluations = map(read_evaluation, files)
    current = [item for item in evaluations if item is not None and item.weights == result["weights_sha256"]]
    return sorted(current, key=lambda evaluation: (evaluation.attack.norm, evaluation.attack.eps))


def trial_evaluations(folder: Path, planned: Iterable[PlannedTrial]) -> list[tuple[PlannedTrial, Evaluation]]:
    """Returns each evaluation of each planned cell, from the recipe's folder, which has a folder for each trial."""
    read = cache(read_evaluations)
    return [(cell, evaluation) for cell in planned for evaluation in read(folder / cell.trial_id)]


@dataclass(frozen=True)
class AttackRow:
    """The row of a method or of a single network.

    Attributes:
        label: Label of the recipe's row, or name of the network.
        name: Name of the row in a table.
        values: Mean and standard deviation over trials, by key of the table's columns.
        difference: Last column minus the baseline's, paired by seed; None for the baseline, without a baseline, and for
            a row of another protocol.
        tests: Tests of the difference, corrected for the methods of the table; None without a difference.
    """

    label: str
    name: str
    values: dict[str, MeanAndStd]
    difference: Difference | None = None
    tests: Significance | None = None


@dataclass(frozen=True)
class AttackTable:
    """The rows of one pair, or of one network, under one attack.

    Attributes:
        title: Networks, dataset, attack and images.
        columns: Titles by key of the rows' values.
        rows: The rows.
        baseline: Name, in sentences, of the row that differences are taken to; None for none.
        notes: Sentences below the table.
        attack: The attack.
        kind: Whether the rows are of methods or of networks.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[AttackRow, ...]
    baseline: str | None
    notes: tuple[str, ...]
    attack: Attack
    kind: str = "method"


def summarise_attacks(
    evaluations: Iterable[tuple[PlannedTrial, Evaluation]],
    baseline: str,
    incomparable: Collection[tuple[str, str]] = (),
) -> list[AttackTable]:
    """Returns tables of clean and robust accuracy by method, one for each pair and attack.

    Args:
        evaluations: From ``trial_evaluations``.
        baseline: Label of the row that the others are compared with.
        incomparable: Pair's title and label of each row whose protocol is not its pair's, so that it is compared with
            nothing; see ``Summary.incomparable``.
    """
    tables: dict[tuple[str, str], list[tuple[PlannedTrial, Evaluation]]] = {}
    for cell, evaluation in evaluations:
        teacher = teacher_name(cell)
        networks = f"{teacher} → {cell.student}" if teacher else cell.student
        tables.setdefault((f"{networks} on {cell.dataset}", evaluation.attack.id), []).append((cell, evaluation))
    attack_tables = []
    for (heading, _), of_table in tables.items():
        cells, _ = find_cells((trial.label, trial.teacher_seed, trial.seed) for trial, _ in of_table)
        by_label: dict[str, dict[Cell, Evaluation]] = {}
        for (trial, evaluation), cell_of in zip(of_table, cells, strict=True):
            by_label.setdefault(trial.label, {})[cell_of] = evaluation
        alone = {trial.label for trial, _ in of_table if trial.method == ALONE}
        excluded = {label for label in by_label if (heading, label) in incomparable}
        attack_tables.append(_attack_table(heading, by_label, baseline, alone, excluded))
    return attack_tables


def _attack_table(
    title: str,
    by_label: dict[str, dict[Cell, Evaluation]],
    baseline: str,
    alone: Collection[str] = (),
    excluded: Collection[str] = (),
) -> AttackTable:
    """The table of evaluations of one attack.

    Args:
        title: Networks and dataset.
        by_label: The evaluations by label and cell.
        baseline: Label of the row that the others are compared with.
        alone: Labels of students that are trained without a teacher. The p-values of the others, the methods, are
            corrected together.
        excluded: Labels that are compared with nothing; if the baseline is one of them, no row is.
    """
    evaluations = [evaluation for by_cell in by_label.values() for evaluation in by_cell.values()]
    first, columns = evaluations[0], evaluations[0].columns
    last = list(columns)[-1]
    accuracies = {
        key: {
            label: {cell: evaluation.accuracy[key] for cell, evaluation in by_cell.items()}
            for label, by_cell in by_label.items()
        }
        for key in columns
    }
    compared = accuracies[last].get(baseline, {}) if len(by_label) > 1 and baseline not in excluded else {}
    others = {label: by_cell for label, by_cell in accuracies[last].items() if label not in {baseline, *excluded}}
    differences, tests = _compare(others, compared, others.keys() - alone)
    names = {label: student_name(label) if label in alone else label for label in by_label}
    rows = []
    for label in by_label:
        means = {key: estimate_cells(accuracies[key][label]) for key in columns}
        values = {key: mean for key, mean in means.items() if mean}
        rows.append(AttackRow(label, names[label], values, differences.get(label), tests.get(label)))
    crossed = any(is_taught(by_cell) for by_cell in by_label.values())
    notes, shown = _notes(evaluations, columns[last]), baseline_name(baseline) if compared else None
    if crossed:
        notes.append("Several teachers: each seed of the student is trained with each teacher; the standard deviation "
                     "is that of a single training with another teacher and another seed.")  # fmt: skip
    if compared:
        paired = "teacher and seed, with the 95 % interval for other teachers and other seeds (quasi-F)"
        if not crossed:
            paired = "seed, with the 95 % interval of the paired t distribution"
        notes.append(f"Difference: {columns[last]} minus that of {shown} in percentage points, paired by {paired}, "
                     "not corrected for the number of methods.")  # fmt: skip
        if any(test.p_t is not None for test in tests.values()):
            notes.append("P-values, where shown: two-sided, of the t test of the interval and of the test that "
                         "flips the signs of the differences; in brackets after Holm's correction for the "
                         "methods.")  # fmt: skip
        notes += [f"{names[label]} has another protocol, and is compared with nothing." for label in by_label
                  if label in excluded]  # fmt: skip
        notes += [f"Difference of {row.name}: over {row.difference.over} only." for row in rows
                  if row.difference is not None and row.difference.n < row.values[last].n]  # fmt: skip
    return AttackTable(f"{title}, {first.description}", columns, tuple(rows), shown, tuple(notes), first.attack)


def _compare(
    values: Mapping[str, Mapping[Cell, float]], baseline: Mapping[Cell, float], methods: Collection[str]
) -> tuple[dict[str, Difference], dict[str, Significance]]:
    """Returns the rows' differences to the baseline and their tests, by label.

    Args:
        values: Accuracy of each row by cell.
        baseline: The same of the baseline.
        methods: Labels whose p-values are corrected together.
    """
    differences: dict[str, Difference] = {}
    tests: dict[str, Significance] = {}
    for label, by_cell in values.items():
        difference, of_cells = difference_of_cells(by_cell, baseline, CONFIDENCE)
        if difference is not None:
            differences[label] = difference
            tests[label] = difference_tests(difference, of_cells, CONFIDENCE)
    return differences, tests | correct({label: test for label, test in tests.items() if label in methods})


def network_table(name: str, about: str, evaluation: Evaluation) -> AttackTable:
    """Returns the table of one network, with its name in the row, and ``about`` (network and dataset) in the title."""
    table = _attack_table(about, {name: {(None, 0): evaluation}}, "")
    return replace(table, kind="network", notes=table.notes[1:])


def render_tables(tables: Sequence[AttackTable], format: str) -> list[Table]:
    """Returns the tables for ``render``. "csv" is one table with a row for each number, in full precision."""
    return [_csv_table(tables)] if format == "csv" else [_text_table(table, format != "terminal") for table in tables]


def _text_table(table: AttackTable, tests: bool) -> Table:
    """A row for each method or network, with the number of trials and the difference if there are any.

    If ``tests``, the p-values of differences that have some follow them. A terminal has no place for these.
    """
    names = {"p of the t test (Holm)": "p_t", "p of the sign-flip test (Holm)": "p_flip"} if tests else {}
    shown = {header: name for header, name in names.items() if any(format_test(row.tests, name) for row in table.rows)}
    headers = [table.kind, *(f"{name} %" for name in table.columns.values())]
    headers += ["n"] * (table.kind == "method") + [f"difference to {table.baseline}"] * (table.baseline is not None)
    headers += shown
    rows = []
    for row in table.rows:
        cells = [row.name, *(str(row.values[key]) for key in table.columns)]
        if table.kind == "method":
            cells.append(str(max(value.n for value in row.values.values())))
        if table.baseline is not None:
            cells.append(format_difference(row.difference))
        cells += [format_test(row.tests, name) or DASH for name in shown.values()]
        rows.append(cells)
    return simple_table(table.title, headers, rows, table.notes)


def _csv_table(tables: Sequence[AttackTable]) -> Table:
    of_difference, of_tests = ("mean", "low", "high"), ("p_t", "p_t_holm", "p_flip", "p_flip_holm")
    rows = []
    for table in tables:
        for row in table.rows:
            for key, name in table.columns.items():
                is_last = key == list(table.columns)[-1]
                value, difference, tests = row.values[key], is_last and row.difference, is_last and row.tests
                numbers = [getattr(difference, field, None) for field in of_difference]
                numbers += [getattr(tests, field, None) for field in of_tests]
                rows.append((table.title, row.label, name, value.mean, value.std, value.n, *numbers))
    headers = ("table", "label", "column", "mean", "std", "n", "difference", "low", "high", "p_paired_t",
               "p_paired_t_holm", "p_sign_flip", "p_sign_flip_holm")  # fmt: skip
    return simple_table("", headers, rows)


def _notes(evaluations: Sequence[Evaluation], last: str) -> list[str]:
    """The meaning of the columns, that of mean and standard deviation first."""
    first = evaluations[0]
    notes = ["Top-1 accuracy in percent; mean ± sample standard deviation (ddof = 1) over n trials."]
    if len([name for name in first.accuracy if name != CLEAN and not is_pgd(name)]) > 1:
        notes.append("Each attack continues with the images that are still classified correctly (PGD with all images).")
    notes += [f"{title(name)}: {pgd_steps(name)} steps of a quarter of the radius, from one random start."
              for name in filter(is_pgd, first.accuracy)]  # fmt: skip
    if first.complete:
        more = " and the attacks named after it" if last != "AA" else ""
        notes.append(f"{last}: accuracy under standard AutoAttack{more}; the columns before it are upper bounds of it.")
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


def _percent(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 100:
        raise ValueError(f"{value} is no percentage")
    return number
