"""Arranges a summary as the paper's Table 6: one column for each pair, one row for each method, the best two marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, repeat
from typing import Literal

from kd_bench.config.network_names import short_name
from kd_bench.report.render import Column, Table, TableRow, Tex, escape_tex
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summary import PairTable, Published, Summary, SummaryRow

#: Families of methods in the order of the paper's Table 6. Other families follow.
FAMILIES = ("features", "logits")

#: Note for the LaTeX table.
LEGEND = (
    "Best in bold, second underlined, of the methods that are complete. A fraction is the number of finished trials of "
    "those planned; (*) marks another protocol than the rest of the pair's, which is compared with nothing; (u) marks "
    "untuned rows."
)

#: Pairs that fit side by side on a page of paper.
_COLUMNS = 5


Rank = Literal[1, 2]


@dataclass(frozen=True)
class PaperRow:
    """The row of one method.

    Attributes:
        label: Label of the method.
        family: What it distils; empty if that is not known.
        cells: Its results, one a pair; None if the pair does not plan the method.
        ranks: 1 if the method is the best of the pair, 2 if it is the second best, otherwise None; one a pair.
    """

    label: str
    family: str
    cells: tuple[SummaryRow | None, ...]
    ranks: tuple[Rank | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """The pairs of one dataset, in the recipe's order, and the rows of their methods, ordered by family."""

    dataset: str
    pairs: tuple[PairTable, ...]
    rows: tuple[PaperRow, ...]


def paper_tables(summary: Summary) -> list[PaperTable]:
    """Returns a table for each dataset. Only methods that are complete and of their pair's protocol have a rank."""
    tables = []
    for dataset in dict.fromkeys(pair.dataset for pair in summary.pairs):
        pairs = tuple(pair for pair in summary.pairs if pair.dataset == dataset)
        methods = [[row for row in pair.rows if row.kind == "method"] for pair in pairs]
        ranks = [best_two([row.top1.mean if row.ranked and row.top1 else None for row in rows]) for rows in methods]
        cells = [
            {row.label: (row, rank) for row, rank in zip(*column, strict=True)}
            for column in zip(methods, ranks, strict=True)
        ]
        families = {row.label: row.family for rows in methods for row in rows}
        rows = [
            PaperRow(label, family, *zip(*(column.get(label, (None, None)) for column in cells), strict=True))
            for label, family in families.items()
        ]
        order = sorted(set(families.values()), key=lambda family: (family not in FAMILIES, family == "", family))
        rows.sort(key=lambda row: order.index(row.family))
        tables.append(PaperTable(dataset, pairs, tuple(rows)))
    return tables


def split(table: PaperTable, columns: int) -> Iterator[PaperTable]:
    """Splits a table into tables of at most ``columns`` pairs, each with the methods that its pairs plan."""
    for start in range(0, len(table.pairs), columns):
        part = slice(start, start + columns)
        rows = [replace(row, cells=row.cells[part], ranks=row.ranks[part]) for row in table.rows]
        yield PaperTable(table.dataset, table.pairs[part], tuple(row for row in rows if any(row.cells)))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Maps names of networks to names without this suite's prefix, except if two would become equal."""
    names = list(dict.fromkeys(names))
    short = [short_name(name) for name in names]
    return {
        name: shortened if short.count(shortened) == 1 else name for name, shortened in zip(names, short, strict=True)
    }


def best_two(values: Sequence[float | None]) -> list[Rank | None]:
    """Returns 1 for the best value, 2 for the second best, otherwise None. Values that print alike share a rank."""
    printed = [None if value is None else float(f"{value:.2f}") for value in values]
    order = sorted({value for value in printed if value is not None}, reverse=True)
    ranks: dict[float | None, Rank] = dict(zip(order, (1, 2), strict=False))
    return [ranks.get(value) for value in printed]


# --- LaTeX ---


def latex_tables(summary: Summary) -> list[Table]:
    """Returns the tables in the paper's layout, for LaTeX. Published numbers have rows of their own at the end."""
    return [_latex_table(part) for table in paper_tables(summary) for part in split(table, _COLUMNS)]


def _latex_table(table: PaperTable) -> Table:
    pairs = table.pairs
    names = short_names(name for pair in pairs for name in (pair.teacher, pair.student))
    title = rf"\multicolumn{{{len(pairs) + 2}}}{{@{{}}l@{{}}}}{{{escape_tex(table.dataset)}, top-1 accuracy in \%}}"
    networks = []
    if any(pair.teacher for pair in pairs):
        networks.append(["Distillation", "Teacher", *(names[pair.teacher] or "–" for pair in pairs)])
        networks.append(["manner", "", *(_cell(pair.first("teacher")) for pair in pairs)])
    networks.append(["", "Student", *(names[pair.student] for pair in pairs)])
    for label, cells in _students(table):
        networks.append(["", label, *map(_cell, cells)])
    groups = [(TableRow([Tex(title)]),), tuple(map(TableRow, networks))]
    for family, rows in groupby(table.rows, lambda row: row.family):
        heads = chain([family.capitalize()], repeat(""))
        groups.append(
            tuple(
                TableRow(
                    [head, row.label, *map(_cell, row.cells)],
                    ranks={at + 2: rank for at, rank in enumerate(row.ranks) if rank},
                )
                for head, row in zip(heads, rows, strict=False)
            )
        )
    groups.append(tuple(_published("Published", table, lambda row: row.published)))
    groups.append(tuple(_published("Published best epoch", table, lambda row: row.published_best)))
    columns = (Column(()), Column(()), *(Column((), "center") for _ in pairs))
    return Table("", columns, tuple(group for group in groups if group))


def _students(table: PaperTable) -> Iterator[tuple[str, list[SummaryRow | None]]]:
    """Yields the rows of students alone, one cell a pair, with their labels if there are several."""
    alone = [{row.label: row for row in pair.rows if row.kind == "student"} for pair in table.pairs]
    labels = list(dict.fromkeys(label for rows in alone for label in rows))
    for label in labels:
        yield label if len(labels) > 1 else "", [rows.get(label) for rows in alone]


def _published(head: str, table: PaperTable, value: Callable[[SummaryRow], Published | None]) -> Iterator[TableRow]:
    """Yields rows of published values, which ``value`` returns."""
    rows: list[tuple[str, Sequence[SummaryRow | None]]] = [
        ("teacher", [pair.first("teacher") for pair in table.pairs]),
        *((f"student alone {label}".rstrip(), cells) for label, cells in _students(table)),
        *((row.label, row.cells) for row in table.rows),
    ]
    for label, cells in rows:
        values = [value(row) if row else None for row in cells]
        if any(values):
            yield TableRow([head, label, *map(_published_cell, values)])
            head = ""


def _published_cell(value: Published | None) -> Tex:
    if value is None:
        return Tex("--")
    return Tex(rf"{_spread(value.value)} {{\scriptsize ({escape_tex(value.mark)})}}")


def _cell(row: SummaryRow | None) -> Tex:
    if row is None:
        return Tex("")
    incomplete = "" if row.complete else row.counts
    marks = " ".join(filter(None, (incomplete, "" if row.comparable else "{*}", "u" if row.untuned else "")))
    value = "--" if row.top1 is None else _spread(row.top1)
    return Tex(rf"{value}\,{{\scriptsize ({marks})}}" if marks else value)


def _spread(value: MeanAndStd) -> str:
    return f"{value.mean:.2f}" if value.std is None else rf"{value.mean:.2f}\,{{\scriptsize $\pm$\,{value.std:.2f}}}"
