"""Reads environment, learning curves and accuracy by class of a trial from its files, which may be damaged."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Columns of ``metrics.csv`` that are shown as curves.
CURVES = ("top1", "train_top1", "test_loss", "train_loss")

#: Size in bytes that no file of a trial reaches.
_LARGEST = 32 * 2**20


@dataclass(frozen=True)
class TrialDetails:
    """The content of one trial's files.

    Attributes:
        environment: Content of ``environment.json``; empty if there is none.
        curves: Values by epoch of the columns in ``CURVES`` that it has; None for values that are not finite.
        classes: Top-1 in percent by class after the last epoch; empty if it was not recorded.
        problems: Files that could not be read, with the reason.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[float | None]] = field(default_factory=dict)
    classes: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()


def read_details(folder: Path) -> TrialDetails:
    """Reads the files of a trial. Files that are missing or damaged are left out."""
    problems: list[str] = []
    environment = read_mapping(folder / "environment.json", problems)
    result = read_mapping(folder / "result.json", [])
    return TrialDetails(environment, _curves(folder / "metrics.csv", problems), _classes(result), tuple(problems))


def _bytes(path: Path, problems: list[str]) -> bytes | None:
    try:
        if path.stat().st_size <= _LARGEST:
            return path.read_bytes()
        problems.append(f"{path.name} is larger than anything that a trial writes")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path.name} cannot be opened: {error.strerror}")
    return None


def read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """Reads a JSON file of a trial; empty if the file is missing, or damaged, which is added to the problems."""
    content = _bytes(path, problems)
    try:
        value = {} if content is None else json.loads(content)
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is no JSON")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no mapping")
        return {}
    return value


def _curves(path: Path, problems: list[str]) -> dict[str, list[float | None]]:
    content = _bytes(path, problems)
    try:
        reader = csv.DictReader(io.StringIO((content or b"").decode()))
        rows = list(reader)
        columns = [name for name in CURVES if name in (reader.fieldnames or ())]
        values = {name: [float(row[name]) for row in rows] for name in columns}
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError):
        problems.append(f"{path.name} is damaged")
        return {}
    return {name: [value if math.isfinite(value) else None for value in column] for name, column in values.items()}


def _classes(result: Mapping[str, Any]) -> tuple[float, ...]:
    values: Any = result.get("class_top1_last")
    valid = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100 for value in values
    )
    return tuple(map(float, values)) if valid else ()
