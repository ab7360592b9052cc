"""Keeps estimates beside the results, and compares them with the time that training took."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from kd_bench.config.base import KeptContent
from kd_bench.config.teacher_start import allows_features
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.config.validate import parse_kept
from kd_bench.estimate.recipe_cost import CohortGroup, RecipeCost, cost_key
from kd_bench.trials.environment import utc_timestamp
from kd_bench.trials.folder import TEACHERS
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_json
from kd_bench.utils.regular_files import BadFile, read_json_object
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.launch.options import RunOptions

#: The file in ``OUT/<recipe>``.
FILE = "estimate.json"


class _KeptTiming(KeptContent):
    shared_seconds: float
    own_seconds: list[float]


class _KeptGroup(KeptContent):
    cost_keys: list[str]
    here: _KeptTiming | None

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.here is not None and len(self.here.own_seconds) != len(self.cost_keys):
            raise ValueError("own_seconds and cost_keys differ in length")
        return self


class _KeptEstimate(KeptContent):
    made: str | None = None
    groups: list[_KeptGroup]
    outcomes: list[dict[str, Any]] = []


def save_estimate(cost: RecipeCost, options: RunOptions) -> Path:
    """Writes an estimate to ``OUT/<recipe>/estimate.json``. Comparisons of earlier estimates stay in the file.

    Raises:
        UserError: If the file cannot be written.
    """
    path = options.out / cost.recipe / FILE
    content = {
        "made": utc_timestamp(),
        "device": cost.device_name,
        "threads": options.threads,
        "cohorts_at_once": len(cost.devices),
        "groups": [_group_content(group) for group in cost.groups],
        "outcomes": _earlier_outcomes(path),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise UserError(f"{path}: the estimate cannot be written there: {error.strerror or error}") from None
    return path


def compare_with_estimate(planned: Sequence[PlannedTrial], trained: Iterable[str], out: Path, name: str) -> str:
    """Compares the time that trainings took with the estimate, and adds the comparison to the estimate's file.

    Compares the training itself (images, teacher and students) without evaluation and checkpoints. The time that a
    cohort shares is divided among its members.

    Args:
        planned: The recipe's trials.
        trained: Identities of the trials and teachers that were finished now.
        out: Results folder.
        name: The recipe's name.

    Returns:
        A sentence, or an empty string if none of the trainings was estimated.
    """
    path = out / name / FILE
    try:
        content = read_json_object(path)
        if content is None:
            return ""
        estimate = parse_kept(_KeptEstimate, content)
    except BadFile as reason:
        return f"{path} {reason}; the trainings' time is not compared with it"
    epoch_seconds = {
        key: (group.here.shared_seconds, own_seconds)
        for group in estimate.groups
        if group.here is not None
        for key, own_seconds in zip(group.cost_keys, group.here.own_seconds, strict=True)
    }
    trials = {cell.trial_id: (cell.trial, out / name) for cell in planned}
    for cell in planned:
        if isinstance(cell.taught_by, Trial):
            trials[cell.taught_by.id] = cell.taught_by, out / TEACHERS
    estimated = took = 0.0
    compared = []
    for identity in trained:
        if identity not in trials:
            continue
        trial, folder = trials[identity]
        seconds, rows = epoch_seconds.get(cost_key(trial)), _read_metrics(folder / identity)
        if seconds is None or not rows:
            continue
        estimated_shared, estimated_own = seconds
        for number, row in enumerate(rows):
            members, own_seconds = float(row["members"]), float(row["own_seconds"])
            cached = float(row.get("spared_seconds") or 0.0)
            if number == 0 or not allows_features(trial):  # as ``group_missing_trials`` counts epochs
                estimated += estimated_own + estimated_shared / members
            took += own_seconds + (float(row["seconds"]) - own_seconds - cached) / members
        compared.append(identity)
    if not compared or not estimated:
        return ""
    error = 100 * (took / estimated - 1)
    outcome = {
        "when": utc_timestamp(),
        "estimate_of": estimate.made,
        "trainings": compared,
        "estimated_seconds": estimated,
        "took_seconds": took,
        "error_percent": error,
    }
    write_json(path, content | {"outcomes": [*estimate.outcomes, outcome]})
    return (
        f"{name}: {count(len(compared), 'training')}: estimated {format_duration(estimated)}, "
        f"took {format_duration(took)} ({error:+.0f} %)"
    )


def format_duration(seconds: float) -> str:
    """Returns a duration as text with two or three digits, for example "5.0 min"."""
    units = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (1e8, "h", 3600.0))
    unit, size = next(((unit, size) for below, unit, size in units if seconds < below), ("years", 3.15576e7))
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def _group_content(group: CohortGroup) -> dict[str, Any]:
    timing = group.timing
    return {
        "networks": group.title,
        "rows": group.labels,
        "cohorts": len(group.epochs),
        "epochs": sum(group.epochs),
        "training_images": group.images[0],
        "test_images": group.images[1],
        "cost_keys": [cost_key(trial) for trial in group.trials],
        "settings": [trial.settings() for trial in group.trials],
        "here": None
        if timing is None
        else {
            "timed_steps": timing.steps,
            "timed_images": timing.images,
            "shared_seconds": timing.epoch.shared,
            "own_seconds": timing.epoch.students,
            "evaluation_seconds": timing.epoch.evaluation,
            "checkpoint_seconds": timing.epoch.checkpoint,
            "startup_seconds": timing.epoch.startup,
            "epoch_seconds": timing.epoch.seconds,
            "memory_bytes": timing.memory,
        },
        "memory_bytes": group.cost.memory if group.cost else None,
        "hours_by_card": {name: group.hours(epoch) for name, epoch in group.gpu_epochs.items()},
    }


def _earlier_outcomes(path: Path) -> list[dict[str, Any]]:
    """Returns the comparisons in the file; none if it is missing or damaged, since a new estimate replaces it."""
    try:
        content = read_json_object(path)
        return [] if content is None else parse_kept(_KeptEstimate, content).outcomes
    except BadFile:
        return []


def _read_metrics(folder: Path) -> list[dict[str, str]]:
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
