"""Prints tables as HTML, for notebooks. Text is escaped and never becomes markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from kd_bench.report.render import Column, Table, TableRow

#: Styles of a row's rank: the best and the second best of a column.
_RANKS = {1: Markup("<strong>{}</strong>"), 2: Markup("<u>{}</u>")}


def html_tables(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Returns tables as HTML without style sheet or script, with a list of all notes below them."""
    notes = [note for table in tables for note in table.notes] + list(notes)
    items = Markup("\n").join(Markup("<li>{}</li>").format(note) for note in notes)
    parts = [_table(table) for table in tables]
    if notes:
        parts.append(Markup("<ul>\n{}\n</ul>").format(items))
    return Markup("\n").join(parts) + "\n"


def _table(table: Table) -> Markup:
    noted = any(row.note for row in table.rows)
    head = Markup("").join(_cell("th", Markup("<br>").join(column.header), column) for column in table.columns)
    lines = [Markup("<tr>{}{}</tr>").format(head, Markup("<th>note</th>" if noted else ""))]
    for values in table.head_rows:
        cells = (_cell("th", value, column) for value, column in zip(values, table.columns, strict=True))
        lines.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    body = [
        Markup("<tbody>\n{}\n</tbody>").format(Markup("\n").join(_row(row, table.columns, noted) for row in group))
        for group in table.groups
    ]
    caption = Markup("<caption>{}</caption>\n").format(table.title) if table.title else Markup("")
    return Markup("<table>\n{}<thead>\n{}\n</thead>\n{}\n</table>").format(
        caption, Markup("\n").join(lines), Markup("\n").join(body)
    )


def _row(row: TableRow, columns: Sequence[Column], noted: bool) -> Markup:
    cells = Markup("")
    for at, (value, column) in enumerate(zip(row.cells, columns, strict=True)):
        rank = row.ranks.get(at)
        cells += _cell("td", _RANKS[rank].format(value) if rank else str(value), column)
    return Markup("<tr>{}{}</tr>").format(cells, Markup("<td>{}</td>").format(row.note) if noted else Markup(""))


def _cell(tag: str, content: str, column: Column) -> Markup:
    style = Markup(' style="text-align: {}"').format(column.align)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), style, content)
