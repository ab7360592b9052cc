"""Prints a summary of results in all formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kd_bench.report import render
from kd_bench.report.column_cells import best_two_rows, column_text
from kd_bench.report.columns import COLUMNS
from kd_bench.report.crossed import Parts
from kd_bench.report.footnotes import LONG_ONLY, PUBLISHED_ONLY, TOP1_ONLY
from kd_bench.report.paper_layout import LEGEND, latex_tables
from kd_bench.report.render import DASH, Column, Table, TableRow
from kd_bench.report.significance import format_test
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summary import CONFIDENCE, PairTable, Published, Summary, SummaryRow

if TYPE_CHECKING:
    from kd_bench.report.statistics import Difference

_METHOD = Column(("method",))


def write_summary(summary: Summary, format: str, stream: TextIO) -> None:
    """Writes the summary to a stream, with the width, colours and characters that the stream can show."""
    tables, notes = summary_tables(summary, format)
    render.write(tables, format, stream, notes=notes, fit=True, floating=True)


def summary_tables(summary: Summary, format: str) -> tuple[list[Table], tuple[str, ...]]:
    """Returns the tables of a format, and the notes below all of them.

    "csv" has one line for each row, with numbers in full precision and with facts (baseline, coverage, epochs) in
    columns of their own. "latex" has the layout of the paper's Table 6, one column a pair. "latex-long" has the rows of
    "markdown". All but "csv" round numbers and print the footnotes.
    """
    if format == "csv":
        records = [_record(pair, row, summary.baseline, summary.columns) for pair in summary.pairs for row in pair.rows]
        return [render.simple_table("", records[0] if records else (), [[*record.values()] for record in records])], ()
    if format == "latex" and not summary.columns:
        notes = (note for note in summary.footnotes if not note.startswith(LONG_ONLY))
        return latex_tables(summary), (LEGEND, *notes)
    contents = _column_contents(summary) if summary.columns else _contents(summary, tests=format != "terminal")
    columns = tuple(contents)
    tables = []
    for pair in summary.pairs:
        methods = [row.kind == "method" for row in pair.rows]
        first = methods.index(True) if any(methods) else len(methods)
        groups = [
            tuple(
                TableRow([cell(pair, row) for cell in contents.values()], row.note, ranks)
                for row, ranks in zip(rows, _ranks(summary, rows), strict=True)
            )
            for rows in (pair.rows[:first], pair.rows[first:])
            if rows
        ]
        tables.append(Table(pair.title, columns, tuple(groups)))
    footnotes = summary.footnotes
    if summary.columns:
        lacking = (*LONG_ONLY, *PUBLISHED_ONLY, *(TOP1_ONLY if "top1" not in summary.columns else ()))
        footnotes = tuple(note for note in footnotes if not note.startswith(lacking))
    return tables, footnotes if format.startswith("latex") else (*footnotes, *summary.problems)


def _column_contents(summary: Summary) -> dict[Column, Callable[[PairTable, SummaryRow], str]]:
    """Maps the columns of ``--columns`` to functions that print their cell of a row."""

    def cell(name: str) -> Callable[[PairTable, SummaryRow], str]:
        return lambda _, row: column_text(name, row.columns.get(name))

    columns = {Column(COLUMNS[name].header, numeric=True): cell(name) for name in summary.columns}
    return {_METHOD: _name, **columns}


def _ranks(summary: Summary, rows: Sequence[SummaryRow]) -> list[dict[int, int]]:
    """Returns for each row the ranks of its cells by index; none without ``--columns``."""
    ranks: list[dict[int, int]] = [{} for _ in rows]
    for at, name in enumerate(summary.columns, 1):
        for index, rank in best_two_rows(rows, name).items():
            ranks[index][at] = rank
    return ranks


def _contents(summary: Summary, tests: bool) -> dict[Column, Callable[[PairTable, SummaryRow], str]]:
    """Maps the columns to functions that print their cell of a row.

    Differences, with their p-values if ``tests``, have columns if there is a baseline. Published values have columns if
    there are any; those of best epochs stand beside the measured best epoch only.
    """
    crossed = any(pair.crossed for pair in summary.pairs)
    spread = ("mean ± std", "(teachers x seeds)") if crossed else ("mean ± std (n)",)
    cells: dict[tuple[str, ...], Callable[[PairTable, SummaryRow], str]] = {
        ("top-1 %", *spread): lambda _, row: _with_count(row)
    }
    if any(row.published for row in summary.rows):
        cells["published %", "(source)"] = lambda _, row: _published(row.published)
        cells["minus published", "(inside interval?)"] = lambda _, row: _minus_published(row.published)
    if summary.baseline is not None:
        interval = f"[{round(100 * CONFIDENCE)} % interval]"
        cells[f"difference to {summary.baseline_name}", interval] = lambda _, row: format_difference(row.difference)
        if tests:
            seeds_only = not all(pair.crossed for pair in summary.pairs)
            test = "paired t test" if seeds_only else "difference"
            cells[f"p of the {test}", "(Holm)"] = lambda pair, row: _p(pair, row, "p_t")
            if seeds_only:
                cells["p of the sign-flip test", "(Holm)"] = lambda pair, row: _p(pair, row, "p_flip")
    cells["best epoch,", "selected on", "the test set"] = lambda _, row: _spread(row.best)
    if any(row.published_best for row in summary.rows):
        cells["published best epoch %", "(source)"] = lambda _, row: _published(row.published_best)
        cells["best minus published", "(inside interval?)"] = lambda _, row: _minus_published(row.published_best)
    return {
        _METHOD: _name,
        **{Column(header, numeric=True): cell for header, cell in cells.items()},
        Column(("seconds", "an epoch"), "right", numeric=True): lambda _, row: format_seconds(row.seconds),
    }


def _name(_: PairTable, row: SummaryRow) -> str:
    return f"{row.name} (untuned)" if row.untuned else row.name


def _spread(value: MeanAndStd | None) -> str:
    if value is None:
        return DASH
    mean = f"{value.mean:5.2f}"  # aligns 9.80 with 10.20
    return mean if value.std is None else f"{mean} ± {value.std:.2f}"


def _with_count(row: SummaryRow) -> str:
    return f"{_spread(row.top1)} ({row.counts})"


def _p(pair: PairTable, row: SummaryRow, name: str) -> str:
    """The p-value of a test, with the corrected one in brackets if there is one."""
    return format_test(pair.significance.get(row.label), name) or DASH


def _published(value: Published | None) -> str:
    return f"{_spread(value.value)} ({value.mark})" if value else DASH


def _minus_published(value: Published | None) -> str:
    if value is None or value.difference is None:
        return DASH
    inside = "" if value.inside is None else " (inside)" if value.inside else " (outside)"
    return f"{format_signed(value.difference)}{inside}"


def format_difference(value: Difference | None) -> str:
    """Returns a difference with its interval, as in ``+1.20 [+0.80, +1.60]``; a dash for none."""
    if value is None:
        return DASH
    mean = format_signed(value.mean)
    if value.low is None or value.high is None:
        return mean
    return f"{mean} [{format_signed(value.low)}, {format_signed(value.high)}]"


def format_signed(value: float) -> str:
    """Returns a number with its sign, as in ``+1.20``."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def format_seconds(value: float | None) -> str:
    """Returns seconds with three digits, or all digits before the point; a dash for none."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _record(pair: PairTable, row: SummaryRow, baseline: str | None, columns: Sequence[str] = ()) -> dict[str, Any]:
    difference, published, test = row.difference, row.published, pair.significance.get(row.label)
    best = row.published_best
    low, high = (test.bootstrap if test else None) or (None, None)
    return {
        "dataset": pair.dataset,
        "teacher": pair.teacher,
        "student": pair.student,
        **{
            key: getattr(row, key)
            for key in ("kind", "label", "family", "planned", "done", "failed", "damaged", "missing")
        },
        "other_protocol": row.other,
        "other_images": row.other_images,
        "comparable": row.comparable,
        **_fields(row.top1, top1_last_mean="mean", top1_last_std="std"),
        **_fields(row.best, top1_best_mean="mean", top1_best_std="std"),
        "baseline": baseline,
        **_fields(difference, **{f"difference_{name}": name for name in ("mean", "low", "high", "n")}),
        "difference_coverage": CONFIDENCE if difference and difference.low is not None else None,
        **_fields(test, p_paired_t="p_t", p_paired_t_holm="p_t_holm", p_sign_flip="p_flip"),
        **_fields(test, p_sign_flip_holm="p_flip_holm"),
        "bootstrap_low": low,
        "bootstrap_high": high,
        **_fields(published, published="top1", published_std="std", published_source="source"),
        **_fields(published, published_epoch="reports", published_runs="runs"),
        **_fields(published, minus_published="difference", published_inside="inside"),
        **_fields(best, published_best="top1", published_best_std="std", published_best_source="source"),
        **_fields(best, published_best_runs="runs", best_minus_published="difference", published_best_inside="inside"),
        "untuned": row.untuned,
        "seconds_per_epoch": row.seconds,
        "peak_memory_bytes": row.memory,
        "epochs": row.epochs[0] if len(row.epochs) == 1 else None,
        **_teacher_fields(row),
        **_column_fields(row, columns),
        "note": row.note,
    }


def _teacher_fields(row: SummaryRow) -> dict[str, Any]:
    """Seeds of the teachers behind the means, and the parts of the spread if there are several."""
    fields: dict[str, Any] = {"teacher_seeds": " ".join(map(str, row.teacher_seeds)) or None}
    if row.difference and row.difference.low is not None:
        fields["difference_test"] = row.difference.test
    else:
        fields["difference_test"] = None
    for prefix, value in (("top1_last", row.top1), ("difference", row.difference)):
        crossing = value.crossing if value else None
        fields |= _fields(crossing, **{f"{prefix}_teachers": "teachers", f"{prefix}_seeds": "seeds"})
        stds = crossing.stds if crossing else None
        fields |= _fields(stds, **{f"{prefix}_std_{part}": part for part in Parts._fields})
    return fields


def _column_fields(row: SummaryRow, columns: Sequence[str]) -> dict[str, Any]:
    """Mean, standard deviation, number and protocol of the columns of ``--columns`` that CSV does not have anyway."""
    fields: dict[str, Any] = {}
    for name in (name for name in columns if COLUMNS[name].has_protocol):
        cell = row.columns.get(name)
        value = cell.value if cell is not None else None
        fields |= _fields(value, **{f"{name}_mean": "mean", f"{name}_std": "std", f"{name}_n": "n"})
        fields[f"{name}_protocol"] = cell.protocol if cell is not None else None
    return fields


def _fields(value: object, **names: str) -> dict[str, Any]:
    """Attributes of a value by the names of their columns; None for all of them if there is no value."""
    return {column: getattr(value, name, None) for column, name in names.items()}
