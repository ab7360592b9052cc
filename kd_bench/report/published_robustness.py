"""Robust accuracies beside published ones: every source of a number, and only where a network was trained as it was.

What is published lies in ``results/published/robustness.csv``, a row a number and source, by the packaged recipe and
its row that has the settings it was obtained with. Never imports torch.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from kd_bench.report.attack_table import CLEAN, AttackTable, Evaluation, attack_frame
from kd_bench.report.statistics import MeanAndStd, estimate
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from kd_bench.config.trial import PlannedTrial

#: Columns of accuracies, by their names in the file; ``autoattack`` is what all of standard AutoAttack leaves.
TITLES = {CLEAN: "clean", "apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "autoattack": "AA"}

FORMATS = ("terminal", "markdown", "plain", "latex", "csv")

_FILE = ("recipe", "label", "eps", *TITLES, "source")


@dataclass(frozen=True)
class PublishedRobustness:
    """What a source says of a network: accuracies in percent by ``TITLES``, those that it gives."""

    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class RobustnessLine:
    """A network under one radius.

    Attributes:
        label: The recipe's row.
        eps: Radius, as it is written: ``8/255``.
        measured: Accuracies by ``TITLES``, as far as they were measured.
        images: Test images that were attacked; 0 where nothing was measured.
        complete: Whether the last column is that of all of standard AutoAttack; otherwise it is an upper bound.
        published: What sources say.
        planned: Whether the network was to be trained with the published settings.
    """

    label: str
    eps: str
    measured: Mapping[str, MeanAndStd]
    images: int
    complete: bool
    published: tuple[PublishedRobustness, ...]
    planned: bool = True


def read_numbers() -> dict[tuple[str, str, float], tuple[PublishedRobustness, ...]]:
    """The published numbers, by recipe, label and radius, in the file's order.

    Raises:
        UserError: Where the file is damaged.
    """
    path = package_path("results", "published", "robustness.csv")
    found: dict[tuple[str, str, float], list[PublishedRobustness]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != _FILE:
                raise UserError(f"{path}: should have the columns {', '.join(_FILE)}")
            for row in reader:
                values = {key: float(row[key]) for key in TITLES if row[key]}
                key = (row["recipe"], row["label"], float(Fraction(row["eps"])))
                found.setdefault(key, []).append(PublishedRobustness(values, row["source"]))
    except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return {key: tuple(numbers) for key, numbers in found.items()}


def lines(
    recipe: str, planned: Sequence[PlannedTrial], folder: Path, radii: Sequence[str], as_published: Mapping[str, str]
) -> list[RobustnessLine]:
    """A line a row and radius: what was measured, and what is published of it.

    Args:
        recipe: The packaged recipe's name.
        planned: Its trials.
        folder: That of its results.
        radii: As they are written.
        as_published: By label, the identity that the trial of the first seed has with the published settings; a line
            whose trials have others has no published numbers.
    """
    frame, numbers = attack_frame(folder, planned), read_numbers()
    firsts: dict[str, PlannedTrial] = {}
    for one in planned:
        firsts.setdefault(one.label, one)
    found = []
    for radius in radii:
        eps = float(Fraction(radius))
        for label, one in firsts.items():
            same = as_published.get(label) == one.trial_id
            evaluations = _evaluations(frame, label, eps)
            found.append(
                RobustnessLine(
                    label=label,
                    eps=radius,
                    measured=_measured(evaluations),
                    images=evaluations[0].images if evaluations else 0,
                    complete=all(each.complete for each in evaluations),
                    published=numbers.get((recipe, label, eps), ()) if same else (),
                    planned=same,
                )
            )
    return found


@dataclass(frozen=True)
class PublishedLines:
    """What is published of a table's lines, in the table's own columns.

    Attributes:
        cells: By label and column, a mark, a value in percent and a source each.
        notes: What the marks stand for.
    """

    cells: Mapping[tuple[str, str], tuple[tuple[str, float, str], ...]]
    notes: tuple[str, ...]


def published_lines(recipe: str, table: AttackTable) -> PublishedLines:
    """The published numbers of the lines of a packaged recipe's table; none of a column that is an upper bound.

    Args:
        recipe: Its name.
        table: From ``summarise_attacks``, of trials as the recipe plans them.
    """
    last = list(table.columns)[-1]
    named = {CLEAN: CLEAN, "apgd-ce": "apgd_ce", "apgd-t": "apgd_t"}
    named |= {last: "autoattack"} if table.columns[last] == TITLES["autoattack"] else {}
    numbers = read_numbers() if table.ball is not None and table.ball[0] == "Linf" else {}
    marks: dict[str, str] = {}
    cells: dict[tuple[str, str], tuple[tuple[str, float, str], ...]] = {}
    for row in table.rows:
        for number in numbers.get((recipe, row.label, table.ball[1] if table.ball else 0.0), ()):
            mark = marks.setdefault(number.source, chr(ord("a") + len(marks)))
            for column in table.columns:
                if named.get(column) in number.values:
                    cell = (mark, number.values[named[column]], number.source)
                    cells[row.label, column] = (*cells.get((row.label, column), ()), cell)
    notes = tuple(f"{mark}: published, {source}; not measured here." for source, mark in marks.items())
    return PublishedLines(cells, notes)


def _evaluations(frame: pd.DataFrame, label: str, eps: float) -> list[Evaluation]:
    """Those of one radius, of each seed the one of most images, and of these the most complete."""
    cells = frame[(frame["label"] == label) & (frame["eps"] == eps) & (frame["norm"] == "Linf")]
    best: dict[int, Evaluation] = {}
    for seed, one in zip(cells["seed"].tolist(), cells["evaluation"].tolist(), strict=True):
        before = best.get(seed)
        if before is None or (one.images, one.complete) > (before.images, before.complete):
            best[seed] = one
    if not best:
        return []
    most = max((one.images, one.complete) for one in best.values())
    return [one for one in best.values() if (one.images, one.complete) == most]


def _measured(evaluations: Sequence[Evaluation]) -> dict[str, MeanAndStd]:
    names = {CLEAN: CLEAN, "apgd_ce": "apgd-ce", "apgd_t": "apgd-t"}
    found = {
        key: estimate([one.accuracy[name] for one in evaluations if name in one.accuracy])
        for key, name in names.items()
    }
    found["autoattack"] = estimate([one.robust for one in evaluations])
    return {key: value for key, value in found.items() if value is not None}


def render(title: str, found: Sequence[RobustnessLine], format_: str, *, ascii_only: bool = False) -> str:
    """A table as text that ends with a line break: a line a network and radius, and below it one a source.

    Args:
        title: What it is of.
        found: The lines.
        format_: One of ``FORMATS``.
        ascii_only: Spells what ASCII lacks.
    """
    rows: list[list[str]] = []
    for line in found:
        images = f"{line.images} images" if line.images else "not measured yet"
        bound = " (AA: upper bound)" if line.images and not line.complete else ""
        rows.append([line.label, line.eps, *(_spread(line.measured.get(key)) for key in TITLES), images + bound])
        rows += [
            [
                "",
                "",
                *(f"{one.values[key]:.2f}" if key in one.values else "" for key in TITLES),
                f"published: {one.source}",
            ]
            for one in line.published
        ]
    headers = ["row", "eps", *(f"{name} %" for name in TITLES.values()), "of"]
    if format_ == "csv":
        import io

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["table", *headers])
        writer.writerows([title, *row] for row in rows)
        return out.getvalue()
    from tabulate import tabulate

    kind = {"markdown": "pipe", "latex": "latex_booktabs"}.get(format_, "simple")
    mark = {"markdown": "### ", "latex": "% "}.get(format_, "")
    text = f"{mark}{title}\n\n{tabulate(rows, headers, tablefmt=kind, disable_numparse=True)}\n"
    if not all(line.planned for line in found):
        bullet = {"markdown": "\n- ", "latex": "% "}.get(format_, "")
        text += f"{bullet}Rows with other settings than the published ones have no published numbers beside them.\n"
    if ascii_only:
        text = text.replace("±", "+-").replace("–", "-").encode("ascii", "backslashreplace").decode()
    return text


def _spread(value: MeanAndStd | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f} ({value.n})"
