"""A summary as text: for a terminal, for a page, for a paper, for a program."""

from __future__ import annotations

import csv
import io
import os
import shutil
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

from kd_bench.report import latex
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.table import CONFIDENCE, PairTable, Row, Summary
from kd_bench.utils.errors import unknown

if TYPE_CHECKING:
    from kd_bench.report.statistics import Difference

FORMATS = ("terminal", "markdown", "plain", "latex", "latex-long", "csv")

_NOTHING = "–"
_ASCII = str.maketrans({"±": "+-", "–": "-", "→": "->", "─": "-"})
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*`<>"})


class _Column(NamedTuple):
    """What a column is called, in lines, and what a row shows in it."""

    header: tuple[str, ...]
    show: Callable[[Row], str]
    align: Literal["left", "right"] = "left"


def render(summary: Summary, format: str, *, width: int = 80, colour: bool = False, ascii_only: bool = False) -> str:
    """The summary as text that ends with a line break.

    "csv" has a row a line of the table, with numbers in full precision and their facts (baseline, coverage, epochs) in
    columns; "latex" is laid out as the paper's Table 6, a column a pair, "latex-long" has a row for what "markdown" has
    one for; all but "csv" round and add the footnotes.

    Args:
        summary: From ``summarise``.
        format: One of ``FORMATS``.
        width: Columns of the terminal. A number is never cut: where it does not fit, the lines are longer.
        colour: Whether "terminal" may use ANSI escapes.
        ascii_only: Spells what ASCII lacks, "+-" for "±".

    Raises:
        UserError: There is no such format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "csv":
        text = _csv(summary)
    elif format == "latex":
        text = latex.paper(summary)
    elif format == "latex-long":
        text = _latex_long(summary)
    elif format == "terminal":
        text = _terminal(summary, width, colour, ascii_only)
    else:
        text = _tabulated(summary, format, ascii_only)
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode() if ascii_only else text


def write(summary: Summary, format: str, stream: TextIO) -> None:
    """Writes ``render`` to a stream, as wide, as colourful and in such letters as the stream can show."""
    terminal = stream.isatty()
    text = render(
        summary,
        format,
        width=shutil.get_terminal_size((100, 24)).columns,
        colour=terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb",
        ascii_only=not _encodes(stream, "±–→─"),
    )
    # a name may hold what the stream cannot show even where it shows the letters above
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _encodes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- what the cells say ---


def _columns(summary: Summary, tests: bool = False) -> list[_Column]:
    """The table's columns; the difference and its ``tests`` only where there is a baseline, the published likewise."""
    columns = [
        _Column(("method",), _name),
        _Column(("top-1 %", "mean ± std (n)"), _with_count),
        _Column(("best epoch,", "selected on", "the test set"), lambda row: _spread(row.best)),
        _Column(("seconds", "an epoch"), lambda row: _seconds(row.seconds), "right"),
    ]
    if summary.baseline is not None:
        header = (f"difference to {summary.baseline}", f"[{round(100 * CONFIDENCE)} % interval]")
        columns.insert(2, _Column(header, lambda row: _interval(row.difference)))
        if tests:
            columns.insert(3, _Column(("p of the paired t test", "(Holm)"), lambda row: _p(row, "t")))
            columns.insert(4, _Column(("p of the sign-flip test", "(Holm)"), lambda row: _p(row, "flip")))
    if any(row.published for pair in summary.pairs for row in pair.rows):
        columns[2:2] = [
            _Column(("published %", "(source)"), _published),
            _Column(("minus published", "(inside interval?)"), _minus_published),
        ]
    return columns


def _name(row: Row) -> str:
    if row.kind == "teacher":
        return "teacher"
    if row.kind == "student":
        return "student alone" if row.label == "none" else f"student alone ({row.label})"
    return row.label


def _spread(value: MeanAndStd | None) -> str:
    if value is None:
        return _NOTHING
    mean = f"{value.mean:5.2f}"  # so that 9.80 stands well under 10.20
    return mean if value.std is None else f"{mean} ± {value.std:.2f}"


def _with_count(row: Row) -> str:
    return f"{_spread(row.top1)} ({row.done if row.complete else f'{row.done}/{row.planned}'})"


def _interval(value: Difference | None) -> str:
    if value is None:
        return _NOTHING
    mean = _signed(value.mean)
    return mean if value.low is None or value.high is None else f"{mean} [{_signed(value.low)}, {_signed(value.high)}]"


def _p(row: Row, test: Literal["t", "flip"]) -> str:
    """A p-value, and behind it the one that is corrected for the number of methods, where there is one."""
    found = row.significance
    if found is None:
        return _NOTHING
    p, corrected = (found.p_t, found.p_t_holm) if test == "t" else (found.p_flip, found.p_flip_holm)
    if p is None:
        return _NOTHING
    return spelt_p(p) if corrected is None else f"{spelt_p(p)} ({spelt_p(corrected)})"


def spelt_p(p: float) -> str:
    """A p-value to three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _published(row: Row) -> str:
    value = row.published
    return f"{_spread(MeanAndStd(value.top1, value.std, 1))} ({value.mark})" if value else _NOTHING


def _minus_published(row: Row) -> str:
    value = row.published
    if value is None or value.difference is None:
        return _NOTHING
    inside = "" if value.inside is None else " (inside)" if value.inside else " (outside)"
    return f"{_signed(value.difference)}{inside}"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _title(pair: PairTable) -> str:
    networks = f"{pair.teacher} → {pair.student}" if pair.teacher else pair.student
    return f"{networks} on {pair.dataset}"


def _begins_methods(pair: PairTable, at: int) -> bool:
    """Whether the first method stands in this line, below the teacher and the student alone."""
    return pair.rows[at].kind == "method" and (at == 0 or pair.rows[at - 1].kind != "method")


# --- the formats ---


def _tabulated(summary: Summary, format: str, ascii_only: bool) -> str:
    """Markdown, or the same with nothing but spaces and rules."""
    from tabulate import tabulate

    markdown = format == "markdown"
    # tabulate aligns by length, so "±" is respelt before it sees the cells
    spell = {**(_MARKDOWN if markdown else {}), **(_ASCII if ascii_only else {})}
    columns = _columns(summary, tests=True)
    noted = any(row.note for pair in summary.pairs for row in pair.rows)
    blocks = []
    for pair in summary.pairs:
        headers = [" ".join(column.header) for column in columns] + ["note"] * noted
        rows = [[column.show(row) for column in columns] + [row.note] * noted for row in pair.rows]
        table = tabulate(
            [[cell.translate(spell) for cell in row] for row in rows],
            [header.translate(spell) for header in headers],
            tablefmt="pipe" if markdown else "simple",
            disable_numparse=True,
            colalign=[column.align for column in columns] + ["left"] * noted,
        )
        blocks.append(f"{'### ' * markdown}{_title(pair).translate(spell)}\n\n{table}\n")
    remarks = [*summary.footnotes, *summary.problems]
    blocks.append("".join(f"{'- ' * markdown}{remark.translate(spell)}\n" for remark in remarks))
    return "\n".join(blocks)


def _terminal(summary: Summary, width: int, colour: bool, ascii_only: bool) -> str:
    """One table a pair, all with the same columns, and under each what is incomplete in it."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    spell = _ASCII if ascii_only else {}
    columns = _columns(summary)
    headers = ["\n".join(column.header).translate(spell) for column in columns]
    cells = {
        id(row): [column.show(row).translate(spell) for column in columns]
        for pair in summary.pairs
        for row in pair.rows
    }
    widths = [
        max(map(cell_len, (*header.split("\n"), *(shown[at] for shown in cells.values()))))
        for at, header in enumerate(headers)
    ]
    # the frame takes 2 columns; a gap between columns takes 2, or 1 where space is short; last, names are folded
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) + 2 <= width else 1
    spare = width - 2 - sum(widths) - gap * (len(widths) - 1)
    widths[0] = max(widths[0] + min(spare, 0), min(widths[0], len("student alone")))
    whole = max(width, sum(widths) + gap * (len(widths) - 1) + 2)
    out = io.StringIO()
    console = Console(
        file=out,
        width=whole,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for pair in summary.pairs:
        table = Table(box=box.HORIZONTALS, padding=(0, gap - 1, 0, 0), pad_edge=False)
        for at, column in enumerate(columns):
            table.add_column(
                Text(headers[at]),
                justify=column.align,
                width=widths[at],
                no_wrap=at > 0,
                overflow="fold",
                vertical="top",
            )
        for at, row in enumerate(pair.rows):
            if _begins_methods(pair, at):
                table.add_section()
            table.add_row(*map(Text, cells[id(row)]), style="yellow" if row.note else "")
        console.print(Text(_title(pair).translate(spell), style="bold"))
        console.print(table)
        for row in pair.rows:
            if row.note:
                console.print(Text(f"  {_name(row)}: {row.note}".translate(spell), style="yellow"))
        console.print()
    for remark in (*summary.footnotes, *summary.problems):
        lines = textwrap.wrap(remark.translate(spell), width, subsequent_indent="  ", break_on_hyphens=False)
        console.print(Text("\n".join(lines), style="dim"))
    text = out.getvalue()
    return text if colour else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _latex_long(summary: Summary) -> str:
    """A block a pair and a row a line, with the statistics that the other layout has no room for."""
    columns = _columns(summary, tests=True)
    body = []
    notes = []
    for pair in summary.pairs:
        title = latex.tex(_title(pair))
        body += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{\textbf{{{title}}}}} \\"]
        for at, row in enumerate(pair.rows):
            if at == 0 or _begins_methods(pair, at):
                body.append(r"\midrule")
            name, *numbers = (column.show(row) for column in columns)
            body.append(" & ".join([latex.tex(name), *map(latex.number, numbers)]) + r" \\")
            if row.note:
                notes.append(f"{_name(row)} ({_title(pair)}): {row.note}.")
    tabular = [
        rf"\begin{{tabular}}{{@{{}}{''.join(column.align[0] for column in columns)}@{{}}}}",
        r"\toprule",
        " & ".join(map(_tex_header, columns)) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return latex.environment([tabular], (*summary.footnotes, *notes))


def _tex_header(column: _Column) -> str:
    lines = [latex.tex(line) for line in column.header]
    stacked = r" \\ ".join(rf"\strut {line}" for line in lines)
    return lines[0] if len(lines) == 1 else rf"\shortstack[{column.align[0]}]{{{stacked}}}"


def _csv(summary: Summary) -> str:
    """A row a line of the table; empty where there is no number."""
    records = [_record(pair, row, summary.baseline) for pair in summary.pairs for row in pair.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, records[0].keys() if records else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(pair: PairTable, row: Row, baseline: str | None) -> dict[str, str | float | None]:
    top1, best, difference, published = row.top1, row.best, row.difference, row.published
    tested = row.significance
    bootstrap = tested.bootstrap if tested else None
    return {
        "dataset": pair.dataset,
        "teacher": pair.teacher,
        "student": pair.student,
        "kind": row.kind,
        "label": row.label,
        "family": row.family,
        "planned": row.planned,
        "done": row.done,
        "failed": row.failed,
        "unreadable": row.unreadable,
        "missing": row.missing,
        "other_protocol": row.other,
        "comparable": row.comparable,
        "top1_last_mean": top1.mean if top1 else None,
        "top1_last_std": top1.std if top1 else None,
        "top1_best_mean": best.mean if best else None,
        "top1_best_std": best.std if best else None,
        "baseline": baseline,
        "difference_mean": difference.mean if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "difference_n": difference.n if difference else None,
        "difference_coverage": CONFIDENCE if difference and difference.low is not None else None,
        "p_paired_t": tested.p_t if tested else None,
        "p_paired_t_holm": tested.p_t_holm if tested else None,
        "p_sign_flip": tested.p_flip if tested else None,
        "p_sign_flip_holm": tested.p_flip_holm if tested else None,
        "bootstrap_low": bootstrap[0] if bootstrap else None,
        "bootstrap_high": bootstrap[1] if bootstrap else None,
        "published": published.top1 if published else None,
        "published_std": published.std if published else None,
        "published_source": published.source if published else None,
        "minus_published": published.difference if published else None,
        "published_inside": published.inside if published else None,
        "seconds_per_epoch": row.seconds,
        "peak_memory_bytes": row.memory,
        "epochs": row.epochs[0] if len(row.epochs) == 1 else None,
        "note": row.note,
    }
