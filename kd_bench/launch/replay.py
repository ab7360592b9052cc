"""Trains a kept trial again and compares the two trainings epoch by epoch.

The numbers have the same bits if processor, device, threads and versions are the same. Elsewhere the accuracy has to be
one that another seed could have had, as far as the kept trials of other seeds show.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.data import registry as datasets
from kd_bench.launch.options import RunOptions
from kd_bench.launch.run_recipe import train_trials, training_failure
from kd_bench.report.statistics import MeanAndStd, estimate, prediction_interval
from kd_bench.training.epoch_rows import MEASURED
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.metrics_file import Metrics
from kd_bench.trials.reader import TrialRecord, read_trial, trial_settings
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256

#: Entries of ``environment.json`` that the last bits of a training depend on.
_NUMERICS = ("code", "processor", "cpu_capability", "device_name", "cuda", "cudnn", "tf32", "threads", "processes")

#: How a difference in these entries is named, if not by the entry itself.
_TITLES = {"code": "digest of kd-bench's code", "cpu_capability": "instructions", "device_name": "device"}


@dataclass(frozen=True)
class Difference:
    """The first number in which two trainings differ.

    Attributes:
        epoch: From 1.
        column: Column of ``metrics.csv``.
        kept, replayed: The values; None for a missing one.
    """

    epoch: int
    column: str
    kept: float | None
    replayed: float | None


@dataclass(frozen=True)
class Replay:
    """A kept trial and its replay.

    Attributes:
        kept, replayed: The two folders' content.
        machine: What differs between the environments, e.g. "torch 2.13.0, here 2.14.1"; empty if nothing does.
        difference: The first difference; None if all numbers are equal.
        same_weights: Whether the trained weights have the same checksum; None if a checksum is missing.
        spread: Accuracy after the last epoch over the kept seeds, in percent.
    """

    kept: TrialRecord
    replayed: TrialRecord
    machine: tuple[str, ...]
    difference: Difference | None
    same_weights: bool | None
    spread: MeanAndStd

    @property
    def is_equal(self) -> bool:
        """Whether the two trainings have the same bits, as far as they were kept."""
        return self.difference is None and self.same_weights is not False

    @property
    def top1(self) -> tuple[float, float]:
        """The accuracies after the last epoch, kept and replayed, in percent."""
        return _top1(self.kept), _top1(self.replayed)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the accuracy of a further seed is expected (95 %); None if a single seed was kept."""
        return prediction_interval(self.spread)

    @property
    def agrees(self) -> bool:
        """Whether the replay confirms the kept trial."""
        if self.is_equal or not self.machine:
            return self.is_equal
        return self.interval is not None and self.interval[0] <= self.top1[1] <= self.interval[1]


def replay(path: Path, options: RunOptions, weights: Path | None = None) -> Replay:
    """Trains a kept trial again, in ``replays`` in the results folder, and compares the trainings.

    It resumes where it was stopped. The teacher is copied from the folder beside the trial's if its weights were kept
    there, and otherwise trained again.

    Args:
        path: Folder of a finished trial, whose weights need not have been kept.
        options: How to train. The number of threads is the kept trial's.
        weights: File of the teacher's weights, for a teacher that was not trained by kd-bench; or of the weights that
            the training of the trial or of its teacher started from.

    Raises:
        UserError: If the folder is missing or has no finished training, or the teacher's weights are missing or other
            ones.
        RunFailed: If the training fails.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: there is no such folder")
    path = path.resolve()  # the folder's name is compared with the trial's identity, and "." has none
    kept = read_trial(path)
    if kept.verdict != "done":
        raise UserError(kept.advice if kept.faults else f"{path}: has no finished trial that could be trained again")
    trial = trial_settings(kept)
    if isinstance(trial, PretrainedTeacher):
        raise UserError(f"{path}: is a teacher whose weights came in a file, so there is nothing to train again")
    threads = kept.environment.get("threads") or options.threads
    options = replace(options, threads=threads, out=options.out / "replays")
    if options.out.resolve() == path.parents[1]:
        raise UserError(f"{path}: is a replay itself; replay the trial that was kept")
    name = path.parent.name
    if weights is not None:
        _check_weights(trial, weights)
    elif trial.pretrained is not None:
        raise UserError(
            f"{path}: its training started from weights whose SHA-256 is {trial.pretrained}; name their file with "
            "--weights FILE"
        )
    elif trial.teacher is not None:
        _copy_teacher(trial.teacher, path, options.out)
    datasets.locate(trial.dataset, options.data)
    planned = PlannedTrial(trial, trial.method.name, trial.teacher, weights)
    failed = train_trials(name, [planned], options, f"replay of {name}/{trial.id}")
    if failed:
        raise training_failure(str(path), failed)
    replayed = read_trial(options.out / name / trial.id)
    return compare(kept, replayed, trial)


def compare(kept: TrialRecord, replayed: TrialRecord, trial: Trial) -> Replay:
    """Compares two finished trainings with the same settings.

    Args:
        kept, replayed: The content of their folders.
        trial: The settings.
    """
    checksums = [(record.result or {}).get("weights_sha256") for record in (kept, replayed)]
    same_weights = checksums[0] == checksums[1] if all(checksums) else None
    assert kept.metrics is not None
    assert replayed.metrics is not None
    machine = tuple(_machine_differences(kept.environment, replayed.environment))
    difference = _first_difference(kept.metrics, replayed.metrics)
    return Replay(kept, replayed, machine, difference, same_weights, _spread(kept, trial))


def _first_difference(kept: Metrics, replayed: Metrics) -> Difference | None:
    names = [name for name in {**kept.columns, **replayed.columns} if name not in MEASURED]
    for epoch in range(max(kept.rows, replayed.rows)):
        for name in names:
            values = [_value(metrics.columns.get(name, ()), epoch) for metrics in (kept, replayed)]
            if repr(values[0]) != repr(values[1]):  # NaN is equal to NaN here
                return Difference(epoch + 1, name, *values)
    return None


def _value(column: tuple[float | None, ...], row: int) -> float | None:
    return column[row] if row < len(column) else None


def _machine_differences(kept: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in _NUMERICS:
        if kept.get(name) != here.get(name):
            before = "not recorded" if kept.get(name) is None else kept[name]
            yield f"{_TITLES.get(name, name)} {before}, here {here.get(name)}"
    packages = [environment.get("packages") or {} for environment in (kept, here)]
    for name in sorted({*packages[0], *packages[1]}):
        if packages[0].get(name) != packages[1].get(name):
            yield f"{name} {packages[0].get(name)}, here {packages[1].get(name)}"


def _spread(kept: TrialRecord, trial: Trial) -> MeanAndStd:
    """Returns the accuracy over the kept trials that differ from this one in nothing but the seed."""
    values = {trial.seed: _top1(kept)}
    for folder in sorted(kept.path.absolute().parent.iterdir()):
        record = read_trial(folder)
        settings = record.settings or {}
        if record.verdict == "done" and {**settings, "seed": trial.seed} == kept.settings:
            values[int(settings["seed"])] = _top1(record)
    spread = estimate(list(values.values()))
    assert spread is not None
    return spread


def _top1(record: TrialRecord) -> float:
    return float((record.result or {})["top1_last"])


def _given_weights(trial: Trial | PretrainedTeacher | None) -> str | None:
    """Returns the SHA-256 of the weights that a training starts from, or that a teacher has; None if none are given."""
    return trial.weights if isinstance(trial, PretrainedTeacher) else trial.pretrained if trial is not None else None


def _check_weights(trial: Trial, weights: Path) -> None:
    expected = trial.pretrained or _given_weights(trial.teacher)
    if expected is None:
        raise UserError("--weights: the teacher of this trial was trained by kd-bench; leave the option out")
    if not weights.is_file():
        raise UserError(f"--weights {weights}: there is no such file")
    if sha256(weights) != expected:
        raise UserError(f"--weights {weights}: is not the file of this trial, whose SHA-256 is {expected}")


def _copy_teacher(teacher: Trial | PretrainedTeacher, path: Path, out: Path) -> None:
    """Copies the teacher that the kept trial had, if its weights were kept beside it."""
    source, target = path.absolute().parents[1] / TEACHERS / teacher.id, out / TEACHERS / teacher.id
    record = read_trial(source)
    if record.verdict == "done" and record.has_weights and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            copy = shutil.copytree(source, Path(folder, target.name))
            try:
                copy.rename(target)
            except OSError:
                if not target.exists():  # else another replay was faster
                    raise
    elif (given := _given_weights(teacher)) is not None and not read_trial(target).has_weights:
        origin = "came in" if isinstance(teacher, PretrainedTeacher) else "was trained from"
        raise UserError(
            f"{path}: its teacher, {teacher.model}, {origin} a file whose SHA-256 is {given}; name it with "
            "--weights FILE"
        )
