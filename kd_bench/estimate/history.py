"""What was estimated, kept beside the results, and what became of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.trials.environment import now
from kd_bench.trials.folder import TEACHERS
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import read_json, write_json

if TYPE_CHECKING:
    from kd_bench.estimate.recipe_cost import CohortGroup, EstimateOptions, RecipeCost

#: The file in ``OUT/<recipe>``.
FILE = "estimate.json"


def keep(estimate: RecipeCost, options: EstimateOptions) -> Path:
    """Writes an estimate to ``OUT/<recipe>/estimate.json``; what became of earlier ones stays there.

    Raises:
        UserError: Where it cannot be written.
    """
    from kd_bench.estimate.recipe_cost import cost_key

    path = options.out / estimate.recipe / FILE
    groups = []
    for one in estimate.groups:
        about = {
            "networks": one.title,
            "rows": one.labels,
            "cohorts": len(one.epochs),
            "epochs": sum(one.epochs),
            "training_images": one.images[0],
            "test_images": one.images[1],
            "cost_keys": [cost_key(trial) for trial in one.trials],
            "settings": [trial.settings() for trial in one.trials],
            "here": _seconds(one),
            "memory_bytes": one.counts.memory if one.counts else None,
            "hours_by_card": {name: one.hours(epoch) for name, epoch in one.cards.items()},
        }
        groups.append(about)
    content = {
        "made": now(),
        "device": estimate.device,
        "threads": options.threads,
        "cohorts_at_once": len(estimate.places),
        "groups": groups,
        "outcomes": _outcomes(path),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise UserError(f"{path}: the estimate cannot be written there: {error.strerror or error}") from None
    return path


def settle(planned: Sequence[PlannedTrial], trained: Iterable[str], out: Path, name: str) -> str:
    """Compares what trainings took with what was estimated, and keeps that with the estimate.

    What is compared is training itself: images, teacher and students, without evaluation and checkpoints. Of what a
    cohort shares each trial counts its part.

    Args:
        planned: The recipe's trials.
        trained: Identities of those, and of teachers, that were finished now.
        out: The results folder.
        name: The recipe's name.

    Returns:
        A sentence; empty where there is no estimate of any of them.
    """
    path = out / name / FILE
    kept = _read(path)
    if not kept:
        return ""
    from kd_bench.estimate.recipe_cost import cost_key

    expected = _expected(kept)
    teachers = {one.teacher_id: one.taught_by for one in planned if isinstance(one.taught_by, Trial)}
    trials = {one.trial_id: (one.trial, out / name) for one in planned}
    trials |= {key: (teacher, out / TEACHERS) for key, teacher in teachers.items() if key and teacher}
    estimated = took = 0.0
    settled = []
    for identity in trained:
        trial, folder = trials.get(identity, (None, out))
        seconds = expected.get(cost_key(trial)) if isinstance(trial, Trial) else None
        rows = _rows(folder / identity / "metrics.csv")
        if seconds is None or not rows:
            continue
        shared, own = seconds
        for row in rows:
            members, its_own = float(row["members"]), float(row["own_seconds"])
            estimated += own + shared / members
            spared = float(row.get("spared_seconds") or 0.0)
            took += its_own + (float(row["seconds"]) - its_own - spared) / members
        settled.append(identity)
    if not settled or not estimated:
        return ""
    error = 100 * (took / estimated - 1)
    outcome = {
        "when": now(),
        "estimate_of": kept.get("made"),
        "trainings": settled,
        "estimated_seconds": estimated,
        "took_seconds": took,
        "error_percent": error,
    }
    kept["outcomes"] = [*_outcomes(path), outcome]
    write_json(path, kept)
    count = f"{len(settled)} training{'' if len(settled) == 1 else 's'}"
    return f"{name}: {count}: estimated {duration(estimated)}, took {duration(took)} ({error:+.0f} %)"


def duration(seconds: float) -> str:
    """A time for people, to two or three digits."""
    units = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (1e8, "h", 3600.0))
    unit, size = next(((unit, size) for below, unit, size in units if seconds < below), ("years", 3.15576e7))
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def _seconds(one: CohortGroup) -> dict[str, Any] | None:
    if one.here is None or one.timing is None:
        return None
    return {
        "timed_steps": one.timing.steps,
        "timed_images": one.timing.images,
        "shared_seconds": one.here.shared,
        "own_seconds": list(one.here.own),
        "evaluation_seconds": one.here.evaluation,
        "checkpoint_seconds": one.here.checkpoint,
        "startup_seconds": one.here.startup,
        "epoch_seconds": one.here.seconds,
        "memory_bytes": one.timing.memory,
    }


def _expected(kept: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Seconds an epoch, of what is shared and of the trial's own, by what its cost depends on."""
    found: dict[str, tuple[float, float]] = {}
    for one in kept.get("groups", ()):
        here = one["here"]
        if here is not None:
            for key, own in zip(one["cost_keys"], here["own_seconds"], strict=True):
                found[key] = here["shared_seconds"], own
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError:  # damaged: as if there were none
        return {}
    return content if isinstance(content, dict) else {}


def _outcomes(path: Path) -> list[Any]:
    found = _read(path).get("outcomes", [])
    return found if isinstance(found, list) else []


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
