"""Reads a trial's folder and decides what it is worth: the only reader of ``table``, ``status``, ``report`` and others.

Anybody may have changed a folder, and disks and copies lose bytes. A number is shown only if its trial is "done": the
settings are those of the folder's name, and settings, environment, metrics and result agree with each other. Reading
takes tens of microseconds, so weights are only looked for; ``integrity`` computes their checksum.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kd_bench.config.trial import PretrainedTeacher, Trial, identity
from kd_bench.config.validate import parse, parse_kept
from kd_bench.trials import confusion
from kd_bench.trials.metrics_file import Metrics, read_metrics
from kd_bench.trials.result_file import DoneResult, EnvironmentContent, FailedResult
from kd_bench.utils.errors import UserError
from kd_bench.utils.regular_files import BadFile, check_regular, read_json_object

#: What a folder is worth: a finished trial; one whose loss diverged; one without a result, or no folder yet; one with a
#: file that is missing, unreadable or in conflict with another; one whose settings are not those of its name.
Verdict = Literal["done", "failed", "incomplete", "damaged", "changed"]

WEIGHTS = "student.safetensors"


class Fault(NamedTuple):
    """What is wrong with a file of a trial.

    Attributes:
        file: Its name; empty for the folder itself.
        text: A predicate: "is damaged: it is no JSON".
    """

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file or 'the folder'} {self.text}"


class TrialRecord(NamedTuple):
    """The content of a trial's folder.

    Attributes:
        path: The folder.
        verdict: What it is worth.
        faults: What is wrong, the most important first; empty unless the trial is damaged or changed.
        settings: Content of ``trial.json``; None if there is none or it is faulty.
        result: Content of ``result.json``; None unless the trial is done or failed.
        metrics: The rows of ``metrics.csv``; None if there are none or they are faulty.
        environment: Content of ``environment.json``; empty if there is none or it is faulty.
        has_weights: Whether the file of weights exists. Results may be kept without weights.
        remarks: What is wrong with files of an unfinished or failed trial, which the next run writes anew.
        failure: Why a trial without a result could not be trained; empty if it was not tried, or is being tried again.
    """

    path: Path
    verdict: Verdict
    faults: tuple[Fault, ...] = ()
    settings: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    metrics: Metrics | None = None
    environment: dict[str, Any] = {}  # never changed
    has_weights: bool = False
    remarks: tuple[Fault, ...] = ()
    failure: str = ""

    @property
    def is_damaged(self) -> bool:
        """Whether something is wrong, so that no number of it may be shown."""
        return self.verdict in ("damaged", "changed")

    @property
    def sentences(self) -> list[str]:
        """A sentence for each fault, which names the file."""
        return [f"{self.path / file if file else self.path}: {text}" for file, text in self.faults]

    @property
    def advice(self) -> str:
        """The sentence of the first fault, and what to do."""
        return f"{self.sentences[0]}; restore it, or remove {self.path} to train this trial again"


def read_trial(path: Path) -> TrialRecord:
    """Reads the folder of a trial. Never raises an error, whatever is in it."""
    folder = os.fspath(path)
    try:
        settings = _read_settings(folder)
    except BadFile as error:
        return TrialRecord(path, "damaged", (_folder_fault(folder) or Fault("trial.json", str(error)),))
    if isinstance(settings, Fault):
        return TrialRecord(path, "changed", (settings,))
    try:
        result = _read_result(folder)
    except BadFile as error:
        return TrialRecord(path, "damaged", (Fault("result.json", str(error)),), settings)
    if settings is None:
        fault = Fault("trial.json", "is missing, so nobody knows whose result this is") if result else None
        fault = fault or _folder_fault(folder)
        return TrialRecord(path, "damaged", (fault,)) if fault else TrialRecord(path, "incomplete")
    faults: list[Fault] = []
    metrics = _read_metrics(folder, faults)
    environment = _read_environment(folder, faults)
    has_weights = _has_weights(folder, faults)
    if result is None or result["status"] == "failed":
        verdict: Verdict = "incomplete" if result is None else "failed"
        failure = "" if result else _read_failure(folder)
        return TrialRecord(
            path, verdict, (), settings, result, metrics, environment or {}, has_weights, tuple(faults), failure
        )
    checked = {fault.file for fault in faults}
    if environment is None and "environment.json" not in checked:
        faults.append(Fault("environment.json", "is missing"))
    elif environment and result.get("images") not in (None, environment.get("images")):
        faults.append(Fault("environment.json", "is damaged: its images are not those of result.json"))
    if "metrics.csv" not in checked:
        faults += _conflicts(settings, result, metrics)
    if faults:
        return TrialRecord(path, "damaged", tuple(faults), settings, None, metrics, environment or {}, has_weights)
    return TrialRecord(path, "done", (), settings, result, metrics, environment or {}, has_weights)


def read_environment(folder: Path) -> dict[str, Any]:
    """Returns the content of ``environment.json`` of any trial; empty if there is none or it is faulty."""
    return _read_environment(os.fspath(folder), []) or {}


def trial_settings(record: TrialRecord) -> Trial | PretrainedTeacher:
    """Returns the settings of a trial as a model.

    Raises:
        UserError: If the folder has none, or none that this version of kd-bench knows.
    """
    file = record.path / "trial.json"
    if record.settings is None:
        raise UserError(record.advice if record.faults else f"{file}: is missing")
    if "weights" in record.settings:
        return parse(PretrainedTeacher, record.settings, str(file))
    return parse(Trial, record.settings, str(file))


def _folder_fault(folder: str) -> Fault | None:
    """Returns what is wrong with a folder itself; None if it is a folder, or nothing."""
    if os.path.isdir(folder) or not os.path.lexists(folder):  # noqa: PTH112
        return None
    if os.path.islink(folder):  # noqa: PTH114
        return Fault("", "is a link that leads to no folder")
    return Fault("", "is a file, not a folder")


def _read_settings(folder: str) -> dict[str, Any] | Fault | None:
    """Returns the content of ``trial.json``, or what is wrong if it is not what the folder's name stands for."""
    settings = read_json_object(f"{folder}/trial.json")
    if settings is None:
        return None
    name = folder.rpartition(os.sep)[2]
    try:
        trial_id = identity(settings)
    except ValueError:
        raise BadFile("is damaged: it has an infinite number") from None
    if trial_id == name:
        return settings
    return Fault("trial.json", f"was changed by hand: its settings are those of trial {trial_id}, its folder is {name}")


def _read_result(folder: str) -> dict[str, Any] | None:
    result = read_json_object(f"{folder}/result.json")
    if result is None:
        return None
    status = result.get("status")
    if status not in ("done", "failed"):
        raise BadFile(f"is damaged: it has the status {str(status)[:40]!r}, which is neither 'done' nor 'failed'")
    parse_kept(DoneResult if status == "done" else FailedResult, result)
    return result


def _read_failure(folder: str) -> str:
    with suppress(BadFile):
        return str((read_json_object(f"{folder}/failure.json") or {}).get("reason") or "")
    return ""


def _read_environment(folder: str, faults: list[Fault]) -> dict[str, Any] | None:
    try:
        environment = read_json_object(f"{folder}/environment.json")
        if environment is not None:
            parse_kept(EnvironmentContent, environment)
    except BadFile as error:
        faults.append(Fault("environment.json", str(error)))
        return None
    return environment


def _read_metrics(folder: str, faults: list[Fault]) -> Metrics | None:
    try:
        return read_metrics(f"{folder}/metrics.csv")
    except BadFile as error:
        faults.append(Fault("metrics.csv", str(error)))
        return None


def _has_weights(folder: str, faults: list[Fault]) -> bool:
    try:
        check_regular(os.stat(f"{folder}/{WEIGHTS}").st_mode)  # noqa: PTH116
    except FileNotFoundError:
        return False
    except OSError as error:
        faults.append(Fault(WEIGHTS, f"cannot be opened: {error.strerror}"))
    except BadFile as error:
        faults.append(Fault(WEIGHTS, str(error)))
    return True


def _conflicts(settings: dict[str, Any], result: dict[str, Any], metrics: Metrics | None) -> list[Fault]:
    """Returns where settings, metrics and result of a finished trial disagree."""
    conflict = confusion.conflict(result)
    if conflict is not None:
        return [Fault("result.json", f"is damaged: {conflict}")]
    if "weights" in settings:  # a pretrained teacher: it was measured once, and not trained
        return []
    epochs = settings.get("epochs")
    if result["epochs"] != epochs:
        return [Fault("result.json", f"is damaged: it says {result['epochs']} epochs, but trial.json says {epochs}")]
    if metrics is None:
        return [Fault("metrics.csv", "is missing")]
    if metrics.rows != epochs or not epochs:
        return [Fault("metrics.csv", f"is damaged: it does not have one row for each of {epochs} epochs")]
    faults = []
    top1 = metrics.columns["top1"]
    if top1[-1] != result["top1_last"]:
        text = f"is damaged: it ends with {top1[-1]} %, but result.json says {result['top1_last']} %"
        faults.append(Fault("metrics.csv", text))
    best = max(value for value in top1 if value is not None)  # it is never None, but the type does not say so
    top5 = metrics.columns.get("top5")
    expected = {"top1_best": best, "best_epoch": top1.index(best) + 1, "top5_last": top5[-1] if top5 else None}
    for key, value in expected.items():
        if value is not None and result.get(key, value) != value:
            faults.append(Fault("result.json", f"is damaged: {key} is {result[key]}, but metrics.csv says {value}"))
    return faults
