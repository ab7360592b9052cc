"""Computes the metrics of evaluated trials again, but not the timing, and compares them with ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from kd_bench.trials.evaluation_file import EVALUATION, read_evaluation_file
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.integrity import TOLERANCE
from kd_bench.trials.reader import read_trial, trial_settings
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.regular_files import BadFile

if TYPE_CHECKING:
    from kd_bench.config.trial import PretrainedTeacher, Trial
    from kd_bench.evaluation.evaluate_network import NetworkEvaluator
    from kd_bench.evaluation.target import EvaluationTarget

#: Largest difference, relative and absolute, of values that are no percentages or counts, whose tolerance is that of
#: the accuracy. Temperatures are not compared, because the error is flat at its minimum.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


def verify_evaluations(folders: Iterable[Path], data: Path | None, device: str, workers: int = 0) -> Iterator[str]:
    """Yields a sentence for each value that is not what is measured now. Timing is not repeated.

    Args:
        folders: Folders of finished trials, in which ``check_trial`` finds no faults.
        data, device: Folder of the data sets, None for the default; device of the evaluation.
        workers: Processes that decode images, for data sets that are not held in memory.
    """
    evaluator: NetworkEvaluator | None = None
    for folder in folders:
        if (folder / EVALUATION).exists():
            if evaluator is None:
                from kd_bench.evaluation.evaluate_network import NetworkEvaluator

                evaluator = NetworkEvaluator(data, device, workers=workers)
            try:
                yield from _verify(folder, evaluator)
            except (UserError, RunFailed) as error:
                yield str(error)


def _verify(folder: Path, evaluator: NetworkEvaluator) -> Iterator[str]:
    from kd_bench.evaluation import corruptions, out_of_distribution
    from kd_bench.evaluation.target import trial_target

    path = folder / EVALUATION
    try:
        recorded = read_evaluation_file(path)
    except BadFile as error:
        raise UserError(f"{path}: {error}") from None
    if recorded is None:
        return
    target = trial_target(folder)
    measured = evaluator.recompute(target, recorded, list(_teachers(target, recorded.fidelity)))
    if measured.images != recorded.images:
        yield f"{path}: is of other images than the present ones"
        return
    pairs: list[tuple[str, BaseModel | None, BaseModel | None]] = [
        ("calibration", recorded.calibration, measured.calibration),
        *((f"fidelity.{name}", recorded.fidelity[name], measured.fidelity.get(name)) for name in recorded.fidelity),
    ]
    for name, old, new in pairs:
        if old is not None and new is not None:
            for key, before, now in _differences(old, new, name):
                yield f"{path}: {key} is {before}, but {now} when it is computed again"
    others = (
        *corruptions.differences(recorded.corruptions, measured.corruptions),
        *out_of_distribution.differences(recorded.ood, measured.ood),
    )
    for key, before, now in others:
        yield f"{path}: {key} is {before}, but {now} when it is computed again"


def _teachers(target: EvaluationTarget, ids: Iterable[str]) -> Iterator[Trial | PretrainedTeacher]:
    """Yields the settings of the teachers with these ids, as far as they are known."""
    teacher = target.trained.teacher
    for name in ids:
        if teacher is not None and teacher.id == name:
            yield teacher
            continue
        with suppress(UserError):  # it is gone
            yield trial_settings(read_trial(target.folder.resolve().parent.parent / TEACHERS / name))


def _differences(old: BaseModel, new: BaseModel, path: str) -> Iterator[tuple[str, object, object]]:
    """Yields key, recorded and present value of what differs."""
    images, errors = getattr(new, "images", 0), getattr(new, "teacher_errors", 0)
    allowed_of = {
        **dict.fromkeys(("ece", "agreement"), TOLERANCE),
        "agreement_on_errors": TOLERANCE * images / max(errors, 1),
        "teacher_errors": TOLERANCE / 100 * images,
    }
    for name in type(old).model_fields:
        key, before, now = f"{path}.{name}", getattr(old, name), getattr(new, name)
        if name in ("machine", "temperatures"):
            continue
        if isinstance(before, BaseModel) and isinstance(now, BaseModel):
            yield from _differences(before, now, key)
        elif isinstance(before, int | float) and isinstance(now, int | float) and name != "images":
            if abs(before - now) > allowed_of.get(name, max(_ABSOLUTE, _RELATIVE * abs(now))):
                yield key, before, now
        elif before != now:
            yield key, before, now
