"""The trials behind the page's numbers, as plain values for its script: settings, environments, curves, commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import canonical
from kd_bench.report.svg import short
from kd_bench.report.trial_files import CURVES, Details, read_details

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: Values of curves that a page holds in all; with more, each curve has every second epoch, or every third.
_CURVE_VALUES = 240_000

#: What of an environment is different for every trial, and what nobody but its owner needs.
_OF_ONE = ("started", "command", "earlier", "host")

_RESULT = ("top1_last", "top1_best", "best_epoch", "top5_last", "epochs", "seconds", "seconds_per_epoch", "parameters",
           "cohort", "finished")  # fmt: skip


@dataclass(frozen=True)
class TrialLocation:
    """Where a trial lies and how it is named.

    Attributes:
        folder: Its own.
        cell: Its place in the table.
        recipe: What plans it; empty for nothing.
        rows: The rows that ``--method`` adds to the recipe.
    """

    folder: Path
    cell: PlannedTrial
    recipe: str
    rows: tuple[str, ...] = ()


class TrialDataIndex:
    """Gathers trials, each of them once, and lists what many of them share once."""

    def __init__(self) -> None:
        self.details: dict[str, Details] = {}
        self._trials: dict[str, dict[str, Any]] = {}
        self._shared: dict[str, tuple[int, Any]] = {}

    def add(self, key: str, row: Mapping[str, Any], source: TrialLocation) -> None:
        """Adds a student's trial.

        Args:
            key: Its name on the page; nothing happens where it is there.
            row: Of the frame.
            source: Where it comes from.
        """
        if key in self._trials:
            return
        cell = source.cell
        settings = {name: value for name, value in cell.trial.settings().items() if name not in ("seed", "teacher")}
        self._put(key, source.folder, row, settings)
        self._trials[key] |= {
            "name": f"{cell.label}, {cell.student}, seed {cell.seed}",
            "seed": cell.seed,
            "taught": cell.teacher_id if cell.trial.teacher else None,
            "again": again(source) if source.recipe else None,
        }

    def add_teacher(self, key: str, folder: Path, row: Mapping[str, Any]) -> None:
        """Adds a teacher's own trial; ``row`` is of ``read_result``."""
        if key in self._trials:
            return
        try:
            settings = json.loads((folder / "trial.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            settings = {}
        settings = settings if isinstance(settings, dict) else {}
        self._put(key, folder, row, settings)
        self._trials[key] |= {"name": f"teacher {settings.get('model', '')}".strip(), "seed": settings.get("seed")}

    def seed(self, key: str) -> int | None:
        """The seed of a trial that was added."""
        return self._trials[key].get("seed")

    def _put(self, key: str, folder: Path, row: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        details = self.details[key] = read_details(folder)
        environment = {name: value for name, value in details.environment.items() if name not in _OF_ONE}
        one = {
            "folder": f"{folder.parent.name}/{folder.name}",
            "status": str(row["status"]),
            "reason": _plain(row.get("reason")),
            "settings": self._index(settings),
            "environment": self._index(environment) if environment else None,
            "started": _plain(details.environment.get("started")),
            "command": _plain(details.environment.get("command")),
            "resumed": len(earlier) if isinstance(earlier := details.environment.get("earlier"), list) else 0,
            "problems": list(details.problems),
            "result": {name: _plain(row[name]) for name in _RESULT if _plain(row.get(name)) is not None},
        }
        self._trials[key] = one

    def _index(self, value: Any) -> int:
        value = _plain(value)
        key = canonical(value)
        return self._shared.setdefault(key, (len(self._shared), value))[0]

    def data(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        values = sum(len(curve) for one in self.details.values() for curve in one.curves.values())
        step = max(1, math.ceil(values / _CURVE_VALUES))
        for key, trial in self._trials.items():
            trial["curves"] = {
                name: [_rounded(value, name) for value in self.details[key].curves[name][::step]]
                for name in CURVES
                if self.details[key].curves.get(name)
            }
        shared = [value for _, value in sorted(self._shared.values(), key=lambda item: item[0])]
        return {"trials": self._trials, "shared": shared, "step": step}


def script(data: Any) -> str:
    """JSON that may stand in a page's ``script``: no letter of it can end that, or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def again(source: TrialLocation) -> str:
    """The command that trains one trial anew, in a folder of its own."""
    cell = source.cell
    wanted = {"method": cell.label, "student": cell.student, "seed": str(cell.seed)}
    if cell.teacher != "-":
        wanted["teacher"] = cell.teacher
    only = " ".join(f"--only {shlex.quote(f'{key}={value}')}" for key, value in wanted.items() if "," not in value)
    rows = "".join(f"--method {shlex.quote(row)} " for row in source.rows)
    return f"kd-bench run {shlex.quote(source.recipe)} {rows}{only} --out again"


def _rounded(value: float | None, name: str) -> float | None:
    if value is None:
        return None
    return round(value, 2) if "top1" in name else float(short(float(f"{value:.4g}")))


def _plain(value: Any, depth: int = 6) -> Any:
    """As what JSON can say: no infinities, nothing nested without end, no missing values of a frame."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth - 1) for key, one in value.items()} if depth else "…"
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value] if depth else "…"
    if hasattr(value, "item"):  # a frame's numbers
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None  # what a frame says for nothing
