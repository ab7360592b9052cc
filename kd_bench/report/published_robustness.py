"""Compares robust accuracies with published ones, for networks that were trained with the published settings.

The published values are in ``results/published/robustness.csv``, one row for each network, radius and source, by the
packaged recipe and its row with the settings behind them. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_bench.report.attack_table import CLEAN, AttackTable, Evaluation, trial_evaluations
from kd_bench.report.published_files import read_rows
from kd_bench.report.render import DASH, Table, simple_table
from kd_bench.report.statistics import MeanAndStd, estimate
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from pathlib import Path

    from kd_bench.config.trial import PlannedTrial

#: Titles of accuracies by their column in the file. ``autoattack`` is the accuracy under all of standard AutoAttack.
TITLES = {CLEAN: "clean", "apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "autoattack": "AA"}

#: The same columns by their key in an evaluation.
_KEYS = {CLEAN: CLEAN, "apgd-ce": "apgd_ce", "apgd-t": "apgd_t"}

_COLUMNS = ("recipe", "label", "eps", *TITLES, "source")


class PublishedRobustness(NamedTuple):
    """Accuracies in percent from one source, by the keys of ``TITLES`` that it has."""

    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class RobustnessRow:
    """A network under attacks with one radius.

    Attributes:
        label: Label of the recipe's row.
        eps: Radius as it is written, as in ``8/255``.
        measured: Measured accuracies by the keys of ``TITLES``.
        images: Number of attacked test images; 0 if nothing is measured.
        complete: Whether the last accuracy is that under standard AutoAttack; otherwise it is an upper bound.
        published: Published accuracies, one a source.
        as_published: Whether the network has the published settings.
        warnings: Reasons to doubt the measured accuracies.
    """

    label: str
    eps: str
    measured: Mapping[str, MeanAndStd]
    images: int
    complete: bool
    published: tuple[PublishedRobustness, ...]
    as_published: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RobustnessTable:
    """The networks of a recipe, with its name and data set as the title."""

    title: str
    rows: tuple[RobustnessRow, ...]


def read_numbers() -> dict[tuple[str, str, float], tuple[PublishedRobustness, ...]]:
    """Reads the published values, by recipe, label and radius, in the file's order.

    Raises:
        UserError: If the file is damaged.
    """
    path = package_path("results", "published", "robustness.csv")
    numbers: dict[tuple[str, str, float], tuple[PublishedRobustness, ...]] = {}
    for line, row in read_rows(path, _COLUMNS):
        try:
            values = {key: float(row[key]) for key in TITLES if row[key]}
            key = (row["recipe"], row["label"], float(Fraction(row["eps"])))
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"{line}: {error}") from None
        numbers[key] = (*numbers.get(key, ()), PublishedRobustness(values, row["source"]))
    return numbers


def robustness_rows(
    recipe: str, planned: Sequence[PlannedTrial], folder: Path, radii: Sequence[str], as_published: Mapping[str, str]
) -> list[RobustnessRow]:
    """Returns measured and published accuracies of each row of a recipe and radius.

    Args:
        recipe: The packaged recipe's name.
        planned: Its trials.
        folder: Folder of its results.
        radii: Radii as they are written.
        as_published: Id that the trial of the first seed has with the published settings, by label. A row whose trial
            has another id has no published values.
    """
    evaluations, numbers = trial_evaluations(folder, planned), read_numbers()
    ids: dict[str, str] = {}
    for cell in planned:
        ids.setdefault(cell.label, cell.trial_id)
    rows = []
    for radius in radii:
        eps = float(Fraction(radius))
        for label, trial_id in ids.items():
            same = as_published.get(label) == trial_id
            largest = _largest_evaluations([(cell, item) for cell, item in evaluations if cell.label == label], eps)
            rows.append(
                RobustnessRow(
                    label=label,
                    eps=radius,
                    measured=_measured(largest),
                    images=largest[0].images if largest else 0,
                    complete=all(evaluation.complete for evaluation in largest),
                    published=numbers.get((recipe, label, eps), ()) if same else (),
                    as_published=same,
                    warnings=tuple(dict.fromkeys(text for evaluation in largest for text in evaluation.warnings)),
                )
            )
    return rows


def _largest_evaluations(evaluations: Sequence[tuple[PlannedTrial, Evaluation]], eps: float) -> list[Evaluation]:
    """Evaluations with one radius and equal settings, one a seed.

    They are those of the most images; of these complete ones, those of the most attacks, and those of the most seeds.
    """
    by_settings: dict[str, dict[int, Evaluation]] = {}
    for cell, evaluation in evaluations:
        if (evaluation.attack.norm, evaluation.attack.eps) == ("Linf", eps):
            by_settings.setdefault(evaluation.attack.id, {}).setdefault(cell.seed, evaluation)

    def size(by_seed: dict[int, Evaluation]) -> tuple[int, bool, int, int]:
        first = next(iter(by_seed.values()))
        return first.images, first.complete, len(first.accuracy), len(by_seed)

    return list(max(by_settings.values(), key=size).values()) if by_settings else []


def _measured(evaluations: Sequence[Evaluation]) -> dict[str, MeanAndStd]:
    means = {
        key: estimate([evaluation.accuracy[name] for evaluation in evaluations if name in evaluation.accuracy])
        for name, key in _KEYS.items()
    }
    means["autoattack"] = estimate([evaluation.robust for evaluation in evaluations])
    return {key: mean for key, mean in means.items() if mean is not None}


def published_cells(
    recipe: str, table: AttackTable
) -> tuple[dict[tuple[str, str], list[tuple[str, float, str]]], list[str]]:
    """Returns the published accuracies for a packaged recipe's table; none for columns that are upper bounds.

    Args:
        recipe: The recipe's name.
        table: From ``summarise_attacks``, of trials that the recipe plans.

    Returns:
        Mark, value in percent and source of each published number, by label and column; and sentences that explain the
        marks.
    """
    last = list(table.columns)[-1]
    keys = _KEYS | ({last: "autoattack"} if table.columns[last] == TITLES["autoattack"] else {})
    numbers = read_numbers() if table.attack.norm == "Linf" else {}
    marks: dict[str, str] = {}
    cells: dict[tuple[str, str], list[tuple[str, float, str]]] = {}
    for row in table.rows:
        for number in numbers.get((recipe, row.label, table.attack.eps), ()):
            mark = marks.setdefault(number.source, chr(ord("a") + len(marks)))
            for column in table.columns:
                value = number.values.get(keys.get(column, ""))
                if value is not None:
                    cells.setdefault((row.label, column), []).append((mark, value, number.source))
    return cells, [f"{mark}: published, {key}; not measured here." for key, mark in marks.items()]


def render_tables(tables: Sequence[RobustnessTable], format: str) -> list[Table]:
    """Returns the tables for ``render``. "csv" is one table with a row for each number, in full precision."""
    return [_csv_table(tables)] if format == "csv" else list(map(_text_table, tables))


def _csv_table(tables: Sequence[RobustnessTable]) -> Table:
    lines: list[tuple[Any, ...]] = []
    for table in tables:
        for row in table.rows:
            network = table.title, row.label, float(Fraction(row.eps))
            for key, name in TITLES.items():
                if key in row.measured:
                    mean = row.measured[key]
                    bound = key == "autoattack" and not row.complete
                    lines.append((*network, name, mean.mean, mean.std, mean.n, row.images, bound, None, None))
                lines += [
                    (*network, name, None, None, None, None, None, number.values[key], number.source)
                    for number in row.published
                    if key in number.values
                ]
    headers = ("table", "label", "eps", "column", "mean", "std", "n", "images", "is_upper_bound", "published", "source")
    return simple_table("", headers, lines)


def _text_table(table: RobustnessTable) -> Table:
    """A row for each network and radius, and below it one for each source."""
    lines = []
    for row in table.rows:
        means = [row.measured.get(key) for key in TITLES]
        texts = [DASH if mean is None else f"{mean}{f' ({mean.n})' if mean.n > 1 else ''}" for mean in means]
        images = count(row.images, "image") if row.images else "not measured yet"
        bound = " (AA: upper bound)" if row.images and not row.complete else ""
        lines.append([row.label, row.eps, *texts, images + bound])
        for number in row.published:
            values = [f"{number.values[key]:.2f}" if key in number.values else "" for key in TITLES]
            lines.append(["", "", *values, f"published: {number.source}"])
    note = "Rows with other settings than the published ones have no published numbers beside them."
    notes = [] if all(row.as_published for row in table.rows) else [note]
    notes += [f"Doubtful: {row.label}, {row.eps}: {warning}." for row in table.rows for warning in row.warnings]
    return simple_table(table.title, ("row", "eps", *(f"{name} %" for name in TITLES.values()), "of"), lines, notes)
