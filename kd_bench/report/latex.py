r"""Tables for papers, in LaTeX with the package booktabs: as the paper's Table 6, and with every statistic in long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kd_bench.report.footnotes import LONG_ONLY
from kd_bench.report.grid import Grid, GridCell, grids, parts, short_names
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.table import Row, Summary

#: Pairs side by side on a page of paper.
_COLUMNS = 5

_ESCAPES = str.maketrans(
    {
        **{c: f"\\{c}" for c in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        # behind the \\ of the line above, these two would be read as its arguments
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
_NUMBERS = {**_ESCAPES, **str.maketrans({"-": "$-$", "+": "$+$"})}


def tex(text: str) -> str:
    """Any text, so that LaTeX prints it as it is."""
    return text.translate(_ESCAPES)


def number(text: str) -> str:
    """The same of a number, with signs as in formulas."""
    return text.translate(_NUMBERS)


def environment(tabulars: Sequence[Sequence[str]], notes: Sequence[str], caption: str = "") -> str:
    """A ``table`` environment around the lines of tabulars, with notes below; notes and caption as plain text."""
    body = [line for lines in tabulars for line in (*lines, "", r"\medskip")]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{tex(caption)}}}"] if caption else []),
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            *body[:-2],
            "",
            *(
                [
                    r"\smallskip",
                    r"\begin{minipage}{\linewidth}",
                    r"\scriptsize",
                    *(rf"{tex(note)}\par" for note in notes),
                    r"\end{minipage}",
                ]
                if notes
                else []
            ),
            r"\end{table}",
            "",
        ]
    )


def paper(summary: Summary) -> str:
    """The summary laid out as the paper's Table 6: best bold, second underlined, what is published below by itself."""
    legend = (
        "Best in bold, second underlined, of the methods that are complete. A fraction tells how many of the planned "
        "trials are done; (*) marks another protocol than the rest of the pair's, which is compared with nothing."
    )
    tabulars = [list(_tabular(part)) for grid in grids(summary) for part in parts(grid, _COLUMNS)]
    notes = (note for note in summary.footnotes if not note.startswith(LONG_ONLY))
    return environment(tabulars, (legend, *notes))


def _tabular(grid: Grid) -> Iterator[str]:
    pairs = [column.pair for column in grid.columns]
    names = short_names(name for pair in pairs for name in (pair.teacher, pair.student))
    width = len(pairs)
    yield rf"\begin{{tabular}}{{@{{}}ll{'c' * width}@{{}}}}"
    yield r"\toprule"
    yield rf"\multicolumn{{{width + 2}}}{{@{{}}l@{{}}}}{{{tex(grid.dataset)}, top-1 accuracy in \%}} \\"
    yield r"\midrule"
    if any(pair.teacher for pair in pairs):
        yield _row("Distillation", "Teacher", [names[pair.teacher] or "–" for pair in pairs])
        yield _line("manner", "", [_cell(column.teacher) for column in grid.columns])
    yield _row("", "Student", [names[pair.student] for pair in pairs])
    if any(column.student for column in grid.columns):
        yield _line("", "", [_cell(column.student) for column in grid.columns])
    for family, lines in grid.families:
        yield r"\midrule"
        for at, line in enumerate(lines):
            yield _line(tex(family.capitalize()) if at == 0 else "", tex(line.label), [_marked(c) for c in line.cells])
    yield from _published(grid)
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _published(grid: Grid) -> Iterator[str]:
    """A block with nothing but published numbers, so that nobody takes them for measured ones."""
    rows: list[tuple[str, list[Row | None]]] = [
        ("teacher", [column.teacher for column in grid.columns]),
        ("student alone", [column.student for column in grid.columns]),
        *((one.label, [c.row if c else None for c in one.cells]) for _, lines in grid.families for one in lines),
    ]
    head = "Published"
    for label, found in rows:
        if not any(row and row.published for row in found):
            continue
        if head:
            yield r"\midrule"
        cells = []
        for row in found:
            value = row.published if row else None
            spread = _spread(MeanAndStd(value.top1, value.std, 1)) if value else "--"
            cells.append(rf"{spread} {{\scriptsize ({tex(value.mark)})}}" if value else spread)
        yield _line(head, tex(label), cells)
        head = ""


def _marked(cell: GridCell | None) -> str:
    if cell is None:
        return ""
    shown = _cell(cell.row)
    return rf"\textbf{{{shown}}}" if cell.place == 1 else rf"\underline{{{shown}}}" if cell.place == 2 else shown


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    incomplete = "" if row.complete else f"{row.done}/{row.planned}"
    other = "" if row.comparable else "{*}"
    mark = " ".join(one for one in (incomplete, other) if one)
    shown = "--" if row.top1 is None else _spread(row.top1)
    return rf"{shown}\,{{\scriptsize ({mark})}}" if mark else shown


def _spread(value: MeanAndStd) -> str:
    return f"{value.mean:.2f}" if value.std is None else rf"{value.mean:.2f}\,{{\scriptsize $\pm$\,{value.std:.2f}}}"


def _row(first: str, second: str, cells: Sequence[str]) -> str:
    return _line(tex(first), tex(second), [tex(cell) for cell in cells])


def _line(first: str, second: str, cells: Sequence[str]) -> str:
    return " & ".join([first, second, *cells]) + r" \\"
