"""The table as papers print it: a column a pair below its teacher and student, a row a method, the best two marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kd_bench.report.table import PairTable, Row, Summary

#: The order in which families of methods stand, as in the paper's Table 6; others come after these.
FAMILIES = ("features", "logits")

_PREFIX = "cifar_"


@dataclass(frozen=True)
class GridColumn:
    """A pair, with its teacher's and its lone student's lines where it has them."""

    pair: PairTable
    teacher: Row | None
    student: Row | None


@dataclass(frozen=True)
class GridCell:
    """A method's line in one pair; ``place`` is 1 for the best of the pair's, 2 for the second."""

    row: Row
    place: Literal[1, 2] | None


@dataclass(frozen=True)
class GridLine:
    """A method's cells, one a column; None where the pair does not plan it."""

    label: str
    cells: tuple[GridCell | None, ...]


@dataclass(frozen=True)
class Grid:
    """The pairs of one data set.

    Attributes:
        dataset: Its title.
        columns: The pairs, in the recipe's order.
        families: Families of methods with their lines; the name is empty where none is known.
    """

    dataset: str
    columns: tuple[GridColumn, ...]
    families: tuple[tuple[str, tuple[GridLine, ...]], ...]


def grids(summary: Summary) -> list[Grid]:
    """A grid a data set. Only methods that are complete and of their pair's protocol can be best or second."""
    found = []
    for dataset in dict.fromkeys(pair.dataset for pair in summary.pairs):
        pairs = [pair for pair in summary.pairs if pair.dataset == dataset]
        columns = tuple(GridColumn(pair, _first(pair, "teacher"), _first(pair, "student")) for pair in pairs)
        found.append(Grid(dataset, columns, tuple(_families(pairs))))
    return found


def parts(grid: Grid, columns: int) -> list[Grid]:
    """The grid cut into grids of at most so many columns, for a page of paper."""
    found = []
    for at in range(0, len(grid.columns), columns):
        families = []
        for family, lines in grid.families:
            cut = [GridLine(one.label, one.cells[at : at + columns]) for one in lines]
            if kept := tuple(one for one in cut if any(one.cells)):
                families.append((family, kept))
        found.append(Grid(grid.dataset, grid.columns[at : at + columns], tuple(families)))
    return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Networks without the prefix of this suite's own, where that makes no two of them alike."""
    names = list(dict.fromkeys(names))
    short = [name.removeprefix(_PREFIX) for name in names]
    return {name: one if short.count(one) == 1 else name for name, one in zip(names, short, strict=True)}


def places(values: Sequence[float | None]) -> list[Literal[1, 2] | None]:
    """Which of the values is best and which second; values that print alike share a place."""
    printed = [None if value is None else f"{value:.2f}" for value in values]
    order = sorted({float(one) for one in printed if one is not None}, reverse=True)
    found: list[Literal[1, 2] | None] = []
    for one in printed:
        at = None if one is None else order.index(float(one))
        found.append(1 if at == 0 else 2 if at == 1 else None)
    return found


def _first(pair: PairTable, kind: str) -> Row | None:
    return next((row for row in pair.rows if row.kind == kind), None)


def _families(pairs: Sequence[PairTable]) -> Iterable[tuple[str, tuple[GridLine, ...]]]:
    columns: list[dict[str, GridCell]] = []
    family: dict[str, str] = {}
    for pair in pairs:
        rows = [row for row in pair.rows if row.kind == "method"]
        marks = places([row.top1.mean if row.ranked and row.top1 else None for row in rows])
        columns.append({row.label: GridCell(row, mark) for row, mark in zip(rows, marks, strict=True)})
        family |= {row.label: row.family for row in rows}
    order = sorted(set(family.values()), key=lambda one: (one not in FAMILIES, one == "", one))
    for name in order:
        labels = [label for label, one in family.items() if one == name]
        yield name, tuple(GridLine(label, tuple(column.get(label) for column in columns)) for label in labels)
