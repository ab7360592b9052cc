"""The trials behind the page's numbers as JSON for its script: settings, environments, curves, commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import canonical
from kd_bench.report.trial_files import CURVES, TrialDetails, read_details
from kd_bench.trials.reader import read_trial

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: Largest number of curve values in a page. With more, each curve has every second epoch, or every third, and so on.
_CURVE_VALUES = 240_000

#: Keys of an environment that differ from trial to trial, or that the page does not publish.
_NOT_SHARED = ("started", "command", "earlier", "host")

_RESULT = ("top1_last", "top1_best", "best_epoch", "top5_last", "epochs", "seconds", "seconds_per_epoch", "parameters",
           "cohort", "finished")  # fmt: skip


class PageTrials:
    """Collects the trials of a page. Settings and environments that several trials share are stored once.

    Attributes:
        details: Content of each trial's files, by the trial's key on the page.
    """

    def __init__(self) -> None:
        self.details: dict[str, TrialDetails] = {}
        self._trials: dict[str, dict[str, Any]] = {}
        self._shared: dict[str, tuple[int, Any]] = {}

    def add(
        self, key: str, row: Mapping[Any, Any], folder: Path, cell: PlannedTrial, command: str | None, crossed: bool
    ) -> None:
        """Adds a student's trial, if its key on the page is new.

        ``row`` is the trial's row of the frame. ``command`` trains the trial again; None for none. ``crossed`` is
        whether students are crossed with several teachers of one name.
        """
        settings = {name: value for name, value in cell.trial.settings().items() if name not in ("seed", "teacher")}
        taught = cell.teacher_id if cell.trial.teacher else None
        name = f"{cell.label}, {cell.student}, seed {cell.seed}"
        if crossed and cell.teacher_seed is not None:
            name += f", teacher's seed {cell.teacher_seed}"
        self._add(key, row, folder, settings, name=name, seed=cell.seed, taught=taught, again=command)

    def add_teacher(self, key: str, row: Mapping[Any, Any], folder: Path) -> None:
        """Adds a teacher's own trial, if its key is new. ``row`` is from ``read_result``."""
        settings = read_trial(folder).settings or {}
        name = f"teacher {settings.get('model', '')}".strip()
        self._add(key, row, folder, settings, name=name, seed=settings.get("seed"))

    def _add(
        self, key: str, row: Mapping[Any, Any], folder: Path, settings: Mapping[str, Any], **facts: str | int | None
    ) -> None:
        if key in self._trials:
            return
        details = self.details[key] = read_details(folder)
        environment = {name: value for name, value in details.environment.items() if name not in _NOT_SHARED}
        earlier = details.environment.get("earlier")
        self._trials[key] = {
            "folder": f"{folder.parent.name}/{folder.name}",
            "status": str(row["status"]),
            "reason": _json(row.get("reason")),
            "settings": self._share(settings),
            "environment": self._share(environment) if environment else None,
            "started": _json(details.environment.get("started")),
            "command": _json(details.environment.get("command")),
            "resumed": len(earlier) if isinstance(earlier, list) else 0,
            "problems": list(details.problems),
            "result": {name: value for name in _RESULT if (value := _json(row.get(name))) is not None},
            **facts,
        }

    def _share(self, value: Any) -> int:
        """Stores a value, if it is new, and returns its index."""
        value = _json(value)
        return self._shared.setdefault(canonical(value), (len(self._shared), value))[0]

    def data(self) -> dict[str, Any]:
        """Returns the trials, the shared values, and the number of epochs between two values of a curve."""
        values = sum(len(curve) for details in self.details.values() for curve in details.curves.values())
        step = max(1, math.ceil(values / _CURVE_VALUES))
        for key, trial in self._trials.items():
            curves = self.details[key].curves
            trial["curves"] = {
                name: [_rounded(value, name) for value in _thinned(curves[name], step)]
                for name in CURVES
                if curves.get(name)
            }
        return {"trials": self._trials, "shared": [value for _, value in self._shared.values()], "step": step}


def script(data: Any) -> str:
    """Returns JSON for a ``script`` element, without characters that could end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def training_command(
    cell: PlannedTrial,
    recipe: str,
    methods: Sequence[str] = (),
    crossed: bool = False,
    trials: int | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Returns the command that trains one trial again, in a separate folder.

    Args:
        cell: The trial.
        recipe: Name or file of a recipe that plans it.
        methods: Rows that ``--method`` adds to the recipe.
        crossed: Whether the recipe has several teachers of one name.
        trials, overrides: Number of seeds, and settings, that replace the recipe's.
    """
    conditions = {"method": cell.label, "student": cell.student, "seed": str(cell.seed)}
    if cell.teacher != "-":
        conditions["teacher"] = cell.teacher
    if crossed and cell.teacher_seed is not None:
        conditions["teacher_seed"] = str(cell.teacher_seed)
    only = " ".join(f"--only {shlex.quote(f'{key}={value}')}" for key, value in conditions.items())
    options = [f"--method {shlex.quote(method)}" for method in methods]
    options += [f"--trials {trials}"] * (trials is not None)
    options += [f"--set {shlex.quote(text)}" for text in overrides]
    return f"kd-bench run {' '.join([shlex.quote(recipe), *options, only])} --out again"


def _thinned(values: Sequence[float | None], step: int) -> Sequence[float | None]:
    """Returns every ``step``-th value. The last one is among them, because the page names it."""
    return values[(len(values) - 1) % step :: step]


def _rounded(value: float | None, name: str) -> float | None:
    if value is None:
        return None
    return round(value, 2) if "top1" in name else float(f"{value:.4g}")


def _json(value: Any, depth: int = 6) -> Any:
    """Returns a value that JSON has: None for infinities and missing values, an ellipsis for deep nesting."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner, depth - 1) for key, inner in value.items()} if depth else "…"
    if isinstance(value, list | tuple):
        return [_json(inner, depth - 1) for inner in value] if depth else "…"
    if hasattr(value, "item"):  # a number of a frame
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | bool | int) else None
