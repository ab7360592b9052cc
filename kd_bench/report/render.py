"""Prints tables: for a terminal, as plain text, Markdown, HTML, LaTeX or CSV. All tables come from here.

A table is built as data (``Table``), and ``render`` turns tables into text. Only ``html_table`` beside this file knows
one of the formats, too.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TextIO

from kd_bench.report.html_table import html_tables
from kd_bench.utils.errors import unknown

#: Values of every command's ``--format``. A table with a single LaTeX layout is the same in both LaTeX formats.
FORMATS = ("terminal", "markdown", "plain", "latex", "latex-long", "csv", "html")

#: Shown for a value that does not exist.
DASH = "–"

#: Columns of the terminal that names keep when a table is too wide, as "student alone" needs.
_NAME_WIDTH = 13

_ASCII = str.maketrans({"±": "+-", "–": "-", "→": "->", "─": "-"})
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*`<>~$"})
#: Underscores at the edge of a word, ends of links, and names of characters, which Markdown does not print as they are.
_MARKDOWN_EDGES = re.compile(r"(?<![^\W_])_|_(?![^\W_])|\](?=[(\[])|&(?=#?\w+;)")
_TEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        # LaTeX would read these two as arguments of the \\ that ends the line above
        "[": "{[}",
        "*": "{*}",
        "<": r"$<$",
        ">": r"$>$",
        "|": r"$|$",
        "±": r"$\pm$",
        "→": r"$\to$",
        "–": "--",
    }
)
_TEX_SIGNS = str.maketrans({"-": "$-$", "+": "$+$"})


class Tex(str):
    """LaTeX source, which is printed without escaping."""

    __slots__ = ()


class Column(NamedTuple):
    """A column.

    Attributes:
        header: Lines of its header. A terminal stacks them, other formats join them.
        align: Alignment of its cells.
        numeric: Whether LaTeX prints the "-" and "+" of its cells as signs.
    """

    header: tuple[str, ...]
    align: Literal["left", "center", "right"] = "left"
    numeric: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row.

    Attributes:
        cells: One value a column. CSV prints numbers in full precision and None as nothing; other formats need text.
        note: Remark on the row; empty for none.
        ranks: 1 for the best and 2 for the second best of a column, by index of the column.
    """

    cells: Sequence[Any]
    note: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Printed above it; empty for none.
        columns: Its columns.
        groups: Groups of rows. A terminal and LaTeX print a rule between groups.
        notes: Sentences printed below it.
        head_rows: Rows of text that belong to the header, below the columns' names.
    """

    title: str
    columns: tuple[Column, ...]
    groups: tuple[tuple[TableRow, ...], ...]
    notes: tuple[str, ...] = ()
    head_rows: tuple[tuple[str, ...], ...] = ()

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group]

    @property
    def row_notes(self) -> dict[str, str]:
        """The notes of its rows, each with the names of all rows that have it, and commas between them."""
        names: dict[str, list[str]] = {}
        for row in self.rows:
            if row.note:
                names.setdefault(row.note, []).append(str(row.cells[0]))
        return {note: ", ".join(rows) for note, rows in names.items()}


def simple_table(title: str, headers: Iterable[str], rows: Iterable[Sequence[Any]], notes: Sequence[str] = ()) -> Table:
    """Returns a table with one group of rows, from the lines of its columns' headers and the values of its rows."""
    columns = tuple(Column(tuple(header.split("\n"))) for header in headers)
    return Table(title, columns, (tuple(map(TableRow, rows)),), tuple(notes))


def render(
    tables: Sequence[Table],
    format: str,
    *,
    notes: Sequence[str] = (),
    width: int | None = None,
    colour: bool = False,
    ascii_only: bool = False,
    floating: bool = False,
) -> str:
    """Returns tables as text that ends with a line break.

    Args:
        tables: The tables. CSV needs the same columns in all of them and leaves out notes.
        format: One of ``FORMATS``.
        notes: Sentences printed below all tables.
        width: Columns of the terminal, for "terminal". A number is never cut: a line is longer if it does not fit. None
            prints "terminal" as "plain", with headers and cells of several lines.
        colour: Whether "terminal" may use ANSI escapes; needs ``width``.
        ascii_only: Whether to replace characters outside ASCII, "±" by "+-".
        floating: Whether LaTeX is a ``table`` environment with a caption and notes: "latex" with a tabular for each
            table, "latex-long" with one tabular for all. False prints bare tabulars with title and notes as comments.

    Raises:
        UserError: If there is no such format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "csv":
        text = _csv(tables)
    elif format == "html":
        text = html_tables(tables, notes)
    elif format.startswith("latex") and floating:
        text = _latex(tables, notes, merged=format == "latex-long")
    elif format == "terminal" and width is not None:
        text = _terminal(tables, notes, width, colour, _ASCII if ascii_only else {})
    else:
        text = _tabulated(tables, notes, format, ascii_only)
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode() if ascii_only else text


def write(
    tables: Sequence[Table],
    format: str,
    stream: TextIO,
    *,
    notes: Sequence[str] = (),
    fit: bool = False,
    floating: bool = False,
) -> None:
    """Writes ``render(tables, format, ...)`` to a stream, with the characters and colours that the stream can show.

    Args:
        tables, format, notes, floating: As for ``render``.
        stream: Where to write.
        fit: Whether "terminal" fits the tables to the width of the terminal, with colours.

    Raises:
        UserError: If there is no such format.
    """
    encoding, signs = stream.encoding or "utf-8", "±–→─"
    text = render(
        tables,
        format,
        notes=notes,
        width=shutil.get_terminal_size((100, 24)).columns if fit else None,
        colour=stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        ascii_only=signs.encode(encoding, "ignore").decode(encoding) != signs,
        floating=floating,
    )
    # a name may have characters that the stream cannot encode, even if it can encode those above
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _csv(tables: Sequence[Table]) -> str:
    """One line a row, with a first column "table" if the tables have titles."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titled = any(table.title for table in tables)
    if tables:
        writer.writerow(["table"] * titled + [" ".join(column.header) for column in tables[0].columns])
    for table in tables:
        writer.writerows([table.title] * titled + list(row.cells) for row in table.rows)
    return out.getvalue()


# --- plain text, Markdown and bare LaTeX ---


def _tabulated(tables: Sequence[Table], notes: Sequence[str], format: str, ascii_only: bool) -> str:
    from tabulate import tabulate

    markdown = format == "markdown"
    style, title_mark, note_mark = "simple", "", ""
    if markdown:
        style, title_mark, note_mark = "pipe", "### ", "- "
    elif format.startswith("latex"):
        style, title_mark, note_mark = "latex_booktabs", "% ", "% "
    # characters are replaced before tabulate sees the cells, because tabulate aligns by their number
    replaced = {**(_MARKDOWN if markdown else {}), **(_ASCII if ascii_only else {})}

    def plain(text: str) -> str:
        lines = text if format == "terminal" else " ".join(text.split()) if "\n" in text else text
        text = lines.translate(replaced)
        return _MARKDOWN_EDGES.sub(r"\\\g<0>", text) if markdown else text

    def cell(row: TableRow, at: int) -> str:
        text, rank = plain(str(row.cells[at])), row.ranks.get(at)
        if rank is None:
            return text
        if markdown:  # Markdown has no underline of its own
            return f"**{text}**" if rank == 1 else f"<u>{text}</u>"
        return f"{text} {'*' if rank == 1 else '+'}"

    noted = any(row.note for table in tables for row in table.rows)
    blocks = []
    for table in tables:
        rows = [[plain(value) for value in head] for head in table.head_rows]
        rows += [[cell(row, at) for at in range(len(row.cells))] + [plain(row.note)] * noted for row in table.rows]
        text = tabulate(
            rows,
            [plain("\n".join(column.header)) for column in table.columns] + ["note"] * noted,
            tablefmt=style,
            disable_numparse=True,
            colalign=[column.align for column in table.columns] + ["left"] * noted if rows else None,
        )
        blocks.append(f"{title_mark}{plain(table.title)}\n\n{text}\n" if table.title else f"{text}\n")
        blocks.append("".join(f"{note_mark}{plain(note)}\n" for note in table.notes))
    ranked = any(row.ranks for table in tables for row in table.rows)
    legend = ("*: the best value of its column; +: the second best.",) if ranked and not markdown else ()
    blocks.append("".join(f"{note_mark}{plain(note)}\n" for note in (*legend, *notes)))
    return "\n".join(filter(None, blocks))


# --- the terminal ---


def _terminal(
    tables: Sequence[Table], notes: Sequence[str], width: int, colour: bool, replaced: Mapping[int, str]
) -> str:
    """Tables that share the widths of their columns. Rows with a note are coloured, and the note is printed below."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    def styled(text: str, style: str = "") -> Text:
        return Text(text.translate(replaced), style=style)

    def wrapped(note: str, style: str, indent: str = "") -> Text:
        wrapper = textwrap.TextWrapper(width, indent, f"{indent}  ", break_on_hyphens=False)
        return Text(wrapper.fill(note.translate(replaced)), style=style)

    headers = [styled("\n".join(column.header)) for column in tables[0].columns] if tables else []
    cells = [[styled(str(cell)) for cell in row.cells] for table in tables for row in table.rows]
    widths = [
        max(cell_len(line) for text in column for line in text.plain.split("\n"))
        for column in zip(headers, *cells, strict=True)
    ]
    # the frame takes 2 columns, a gap between columns 2, or 1 if space is short; names are folded last
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) + 2 <= width else 1
    frame = gap * (len(widths) - 1) + 2
    if widths:
        widths[0] = max(widths[0] + min(width - frame - sum(widths), 0), min(widths[0], _NAME_WIDTH))
    out = io.StringIO()
    console = Console(
        file=out,
        width=max(width, sum(widths) + frame),
        force_terminal=colour,
        force_jupyter=False,  # in a notebook rich would show the table instead of writing it
        color_system="standard" if colour else None,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for table in tables:
        framed = RichTable(box=box.HORIZONTALS, padding=(0, gap - 1, 0, 0), pad_edge=False)
        for at, column in enumerate(table.columns):
            framed.add_column(headers[at], justify=column.align, width=widths[at], no_wrap=at > 0, overflow="fold")
        for group in table.groups:
            framed.add_section()
            for row in group:
                framed.add_row(*(styled(str(cell)) for cell in row.cells), style="yellow" if row.note else "")
        if table.title:
            console.print(styled(table.title, "bold"))
        console.print(framed)
        for note, rows in table.row_notes.items():
            console.print(wrapped(f"{rows}: {note}", "yellow", "  "))
        console.print()
    for note in (*(note for table in tables for note in table.notes), *notes):
        console.print(wrapped(note, "dim"))
    text = out.getvalue()
    return text if colour else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


# --- LaTeX ---


def escape_tex(text: str) -> str:
    """Returns LaTeX source that prints the text."""
    return text if isinstance(text, Tex) else text.translate(_TEX)


def _latex(tables: Sequence[Table], notes: Sequence[str], merged: bool) -> str:
    """A ``table`` environment for the package booktabs, with notes below the tabulars."""
    captions = [] if merged else [table.title for table in tables if table.title]
    parts = [tables] if merged else [[table] for table in tables]
    body = [line for part in parts for line in (*_tabular(part, titled=merged), "", r"\medskip")]
    remarks = [note for table in tables for note in table.notes] + list(notes)
    for table in tables:
        of_table = f" ({table.title})" if table.title else ""
        remarks += [f"{rows}{of_table}: {note}." for note, rows in table.row_notes.items()]
    minipage = [
        r"\smallskip",
        r"\begin{minipage}{\linewidth}",
        r"\scriptsize",
        *(rf"{escape_tex(remark)}\par" for remark in remarks),
        r"\end{minipage}",
    ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *(rf"\caption{{{escape_tex(caption)}}}" for caption in captions),
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            *body[:-2],
            "",
            *(minipage if remarks else []),
            r"\end{table}",
            "",
        ]
    )


def _tabular(tables: Sequence[Table], titled: bool) -> list[str]:
    """The lines of one tabular with the rows of all tables, which have the same columns."""
    columns = tables[0].columns if tables else ()
    lines = [rf"\begin{{tabular}}{{@{{}}{''.join(column.align[0] for column in columns)}@{{}}}}", r"\toprule"]
    if any(column.header for column in columns):
        lines.append(" & ".join(map(_tex_header, columns)) + r" \\")
    for table in tables:
        lines += [" & ".join(map(escape_tex, head)) + r" \\" for head in table.head_rows]
        if titled:
            title = rf"\textbf{{{escape_tex(table.title)}}}"
            lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{{title}}} \\"]
        for group in table.groups:
            if lines[-1] != r"\toprule":
                lines.append(r"\midrule")
            lines += [" & ".join(_tex_cells(row, columns)) + r" \\" for row in group]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _tex_header(column: Column) -> str:
    lines = [escape_tex(line) for line in column.header]
    stacked = r" \\ ".join(rf"\strut {line}" for line in lines)
    return "".join(lines) if len(lines) < 2 else rf"\shortstack[{column.align[0]}]{{{stacked}}}"


def _tex_cells(row: TableRow, columns: Sequence[Column]) -> list[str]:
    cells = []
    for at, value in enumerate(row.cells):
        cell, rank = escape_tex(value), row.ranks.get(at)
        if columns[at].numeric and not isinstance(value, Tex):
            cell = value.translate({**_TEX, **_TEX_SIGNS})
        cells.append(rf"\textbf{{{cell}}}" if rank == 1 else rf"\underline{{{cell}}}" if rank else cell)
    return cells
