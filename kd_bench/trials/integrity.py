"""Checks finished trials again: what they say of themselves, their weights, and on request their accuracy."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import UserError, first_line
from kd_bench.utils.files import sha256

#: Percentage points within which an accuracy that is measured again is the same: the arithmetic of another machine may
#: decide an image or two otherwise.
TOLERANCE = 0.1

_IDENTITY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class CheckedTrial:
    """A trial's folder, and what is wrong with it."""

    path: Path
    status: str
    """done, failed, unfinished, or damaged."""
    faults: tuple[str, ...]


def trial_folders(out: Path) -> list[Path]:
    """The folders of trials under a results folder, or that of one recipe, sorted.

    Raises:
        UserError: Where there is none.
    """
    found = sorted(path for depth in ("*", "*/*") for path in out.glob(depth) if _is_trial(path))
    if not found:
        raise UserError(f"{out}: there are no trials in this folder")
    return found


def _is_trial(path: Path) -> bool:
    return _IDENTITY.fullmatch(path.name) is not None and path.is_dir()


def check(path: Path) -> CheckedTrial:
    """Looks at one trial's files; the weights are read, but not run."""
    folder = TrialFolder(path)
    try:
        folder.check()
        settings = _settings(path)
        result = folder.result()
    except UserError as error:
        return CheckedTrial(path, "damaged", (str(error),))
    if result is None:
        return CheckedTrial(path, "unfinished", ())
    if result["status"] == "failed":
        return CheckedTrial(path, "failed", ())
    faults = [*_weights(folder, result)]
    if isinstance(settings, Trial):
        faults += _metrics(path, settings, result)
    return CheckedTrial(path, "done", tuple(faults))


def _settings(path: Path) -> Trial | PretrainedTeacher:
    file = path / "trial.json"
    try:
        content = file.read_text()
        kind = PretrainedTeacher if "weights" in json.loads(content) else Trial
        return kind.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {first_line(error)}") from None


def _weights(folder: TrialFolder, result: dict[str, Any]) -> Iterator[str]:
    file = folder.weights
    if not file.is_file():
        yield f"{file}: is missing; the result is there without its weights"
    elif sha256(file) != result.get("weights_sha256"):
        yield f"{file}: is not what was written: its checksum is another than result.json has"


def _metrics(path: Path, trial: Trial, result: dict[str, Any]) -> Iterator[str]:
    file = path / "metrics.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        epochs = [int(row["epoch"]) for row in rows]
        last = float(rows[-1]["top1"]) if rows else None
    except (OSError, KeyError, ValueError) as error:
        yield f"{file}: cannot be read: {error}"
        return
    if epochs != list(range(1, trial.epochs + 1)):
        yield f"{file}: has not one row for each of {trial.epochs} epochs"
    elif last != result.get("top1_last"):
        yield f"{file}: ends with {last} %, but result.json says {result.get('top1_last')} %"


def measure_again(path: Path, data: Path | None, device: str) -> str | None:
    """Evaluates a finished trial's weights; what is wrong, or None.

    Args:
        path: The trial's folder, which ``check`` finds nothing wrong with.
        data: Where data sets are; None for the default.
        device: Where to evaluate.

    Raises:
        UserError: Where the data set is not there.
    """
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.training.fit import accuracy, load_network

    folder, settings = TrialFolder(path), _settings(path)
    images = datasets.images(settings.dataset, settings.pipeline, datasets.data_dir(data))
    network, view = load_network(settings, folder.weights, images)
    found = accuracy(network, view, images, torch.device(device)).top1
    said = (folder.result() or {})["top1_last"]
    if abs(found - said) <= TOLERANCE:
        return None
    return f"{folder.weights}: measured again it has {found:.2f} %, but result.json says {said:.2f} %"
