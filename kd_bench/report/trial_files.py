"""What lies behind a number: settings, environment and learning curve of each trial, read as files from outside."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Columns of ``metrics.csv`` that are shown, as curves.
CURVES = ("top1", "train_top1", "test_loss", "train_loss")

#: A file of more bytes is none that a trial wrote.
_LARGEST = 32 * 2**20


@dataclass(frozen=True)
class Details:
    """One trial's files.

    Attributes:
        environment: On what it ran; empty where that is not known.
        curves: Values by epoch, of the columns in ``CURVES`` that it has; None where a value is not finite.
        classes: Top-1 in percent by class after the last epoch, where it was recorded.
        problems: What could not be read, and why.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[float | None]] = field(default_factory=dict)
    classes: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()


def read_details(folder: Path) -> Details:
    """What a trial's folder says beside its result; what is missing or damaged is told, and is no error."""
    problems: list[str] = []
    environment = _mapping(folder / "environment.json", problems)
    result = _mapping(folder / "result.json", [])
    return Details(environment, _curves(folder / "metrics.csv", problems), _classes(result), tuple(problems))


def _bytes(path: Path, problems: list[str]) -> bytes | None:
    try:
        if path.stat().st_size > _LARGEST:
            problems.append(f"{path.name} is larger than anything that a trial writes")
            return None
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} cannot be opened: {error.strerror}")
        return None


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    content = _bytes(path, problems)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is no JSON")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no mapping")
        return {}
    return value


def _curves(path: Path, problems: list[str]) -> dict[str, list[float | None]]:
    content = _bytes(path, problems)
    if content is None:
        return {}
    try:
        reader = csv.DictReader(io.StringIO(content.decode()))
        rows = list(reader)
        columns = [name for name in CURVES if name in (reader.fieldnames or ())]
        return {name: [_finite(row[name]) for row in rows] for name in columns}
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError):
        problems.append(f"{path.name} is damaged")
        return {}


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _classes(result: Mapping[str, Any]) -> tuple[float, ...]:
    values = result.get("class_top1_last")
    if not isinstance(values, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 100 for one in values
    ):
        return ()
    return tuple(map(float, values))
