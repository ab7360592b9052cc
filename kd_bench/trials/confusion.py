"""The confusion matrix in ``result.json``: a line of text for each true class, with only what was predicted.

The line ``0:83 5:2`` says that 83 images of its class were taken for class 0 and two for class 5. A matrix of CIFAR-100
has some 8 kB, and a reader needs nothing but ``split``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

#: Number of images of a class, by predicted class.
Row = Mapping[int, int]

_PAIR = "(0|[1-9][0-9]{0,3}):(0|[1-9][0-9]{0,9})"

#: Pattern of a line.
LINE = rf"^({_PAIR}( {_PAIR})*)?$"

#: Largest difference in percentage points between an accuracy of a class and that of the matrix.
_TOLERANCE = 1e-6


def format_rows(cells: Iterable[tuple[int, int, int]], classes: int) -> list[str]:
    """Returns the lines of a matrix. ``cells`` has true class, predicted class and count, in ascending order."""
    rows: list[list[str]] = [[] for _ in range(classes)]
    for true, predicted, count in cells:
        rows[true].append(f"{predicted}:{count}")
    return [" ".join(row) for row in rows]


def parse_rows(lines: Sequence[str]) -> list[Row]:
    """Returns the counts of a matrix. The lines must match ``LINE``."""
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in _numbers(lines)]


def conflict(result: Mapping[str, Any]) -> str | None:
    """Returns why what a result says of its classes cannot be right; None if it can, or if it says nothing."""
    accuracies, names, lines = (result.get(key) or () for key in ("class_top1_last", "class_names", "confusion_last"))
    for key, values in (("class_names", names), ("confusion_last", lines)):
        if values and len(values) != len(accuracies):
            return f"{key} has {len(values)} classes, but class_top1_last has {len(accuracies)}"
    for true, (row, accuracy) in enumerate(zip(_numbers(lines), accuracies, strict=False)):
        predicted, images = row[::2], sum(row[1::2])
        hits = row[2 * predicted.index(true) + 1] if true in predicted else 0
        expected = 100 * hits / images if images else None
        if (expected is None) != (accuracy is None) or abs((expected or 0) - (accuracy or 0)) > _TOLERANCE:
            return f"class_top1_last says {accuracy} % of class {true}, but confusion_last says {expected} %"
        if max(predicted, default=0) >= len(lines):
            return f"confusion_last has class {max(predicted)}, but there are {len(lines)} classes"
    return None


def _numbers(lines: Sequence[str]) -> list[list[int]]:
    """Returns predicted class, count, predicted class, count, and so on, for each line."""
    # One pass of a JSON parser: ten times as fast as int() for each number, and every command reads all trials.
    text = "],[".join(lines).replace(":", ",").replace(" ", ",")
    rows: list[list[int]] = from_json(f"[[{text}]]") if lines else []
    return rows
