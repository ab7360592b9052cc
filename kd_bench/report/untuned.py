"""Marks the rows whose hyper-parameters nobody published for their pair, as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kd_bench.report.paper_layout import short_names
from kd_bench.report.results_frame import teacher_name

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial
    from kd_bench.report.summary import Summary

#: What was used if the recipe does not say it.
_OTHER_SETTINGS = "the settings of other networks"


def mark_untuned(summary: Summary, planned: Sequence[PlannedTrial]) -> Summary:
    """Returns the summary with the recipe's marks of untuned rows, and a footnote if there are any.

    Args:
        summary: The table.
        planned: The trials of the table.
    """
    marks = {
        (cell.dataset, teacher_name(cell), cell.student, cell.label): cell.untuned for cell in planned if cell.untuned
    }
    if not marks:
        return summary
    pairs = []
    for pair in summary.pairs:
        key = pair.dataset, pair.teacher, pair.student
        rows = (replace(row, untuned=row.kind != "teacher" and (*key, row.label) in marks) for row in pair.rows)
        pairs.append(replace(pair, rows=tuple(rows)))
    return replace(summary, pairs=tuple(pairs), footnotes=(*summary.footnotes, _footnote(marks)))


def _footnote(marks: Mapping[tuple[str, str, str, str], bool | str]) -> str:
    """The meaning of the mark, and what was used instead of published settings, row by row."""
    names = short_names(name for _, *networks, _ in marks for name in networks if name)
    used: dict[str, dict[str, list[str]]] = {}  # pairs by row and by what was used
    for (_, teacher, student, label), mark in marks.items():
        settings = mark if isinstance(mark, str) else _OTHER_SETTINGS
        pair = f"{names[teacher]} → {names[student]}" if teacher else names[student]
        used.setdefault(label, {}).setdefault(settings, []).append(pair)
    parts = []
    for label, by_settings in used.items():
        several = len(by_settings) > 1
        texts = (f"{text} ({', '.join(pairs)})" if several else text for text, pairs in by_settings.items())
        parts.append(f"{label}: {', '.join(texts)}")
    return (
        "Untuned: no hyper-parameters of the method are published for this pair, and none were searched for here; "
        f"tuned rows may have an advantage. Used instead: {'; '.join(parts)}."
    )
