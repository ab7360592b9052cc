"""Checks the files of finished trials: settings, metrics, weights, and on request the accuracy."""

from __future__ import annotations

import csv
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

#: Tolerance of a repeated measurement of the accuracy, in percentage points: the rounding of another machine may
#: change the prediction for an image or two.
TOLERANCE = 0.1

_TRIAL_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class CheckedTrial:
    """The outcome of checking a trial.

    Attributes:
        path: The trial's folder.
        status: ``done``, ``failed``, ``unfinished`` or ``damaged``.
        faults: One sentence for each fault.
    """

    path: Path
    status: str
    faults: tuple[str, ...]


def trial_folders(out: Path) -> list[Path]:
    """Returns the sorted folders of the trials in a results folder, or in the folder of one recipe.

    Raises:
        UserError: If there are no trials.
    """
    paths = (path for pattern in ("*", "*/*") for path in out.glob(pattern))
    folders = sorted(path for path in paths if _TRIAL_ID.fullmatch(path.name) and path.is_dir())
    if not folders:
        raise UserError(f"{out}: there are no trials in this folder")
    return folders


def check_trial(path: Path) -> CheckedTrial:
    """Checks the files of one trial. Computes the checksum of the weights but does not build the network."""
    folder = TrialFolder(path)
    try:
        folder.check_settings()
        settings = _read_settings(path)
        result = folder.result()
    except UserError as error:
        return CheckedTrial(path, "damaged", (str(error),))
    if result is None:
        return CheckedTrial(path, "unfinished", ())
    if result["status"] == "failed":
        return CheckedTrial(path, "failed", ())
    faults = []
    if not folder.weights.is_file():
        faults.append(f"{folder.weights}: is missing; the result has no weights")
    elif sha256(folder.weights) != result.get("weights_sha256"):
        faults.append(f"{folder.weights}: is not what was written: its checksum differs from that in result.json")
    if isinstance(settings, Trial):
        faults += _metrics_faults(path, settings, result)
    return CheckedTrial(path, "done", tuple(faults))


def _read_settings(path: Path) -> Trial | PretrainedTeacher:
    file = path / "trial.json"
    try:
        content = file.read_text()
        kind = PretrainedTeacher if "weights" in json.loads(content) else Trial
        return kind.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {first_line(error)}") from None


def _metrics_faults(path: Path, trial: Trial, result: dict[str, Any]) -> Iterator[str]:
    file = path / "metrics.csv"
    try:
        rows = list(csv.DictReader(file.read_text().splitlines()))
        epochs = [int(row["epoch"]) for row in rows]
        last = float(rows[-1]["top1"]) if rows else None
    except (OSError, KeyError, ValueError) as error:
        yield f"{file}: cannot be read: {error}"
        return
    if epochs != list(range(1, trial.epochs + 1)):
        yield f"{file}: does not have one row for each of {trial.epochs} epochs"
    elif last != result.get("top1_last"):
        yield f"{file}: ends with {last} %, but result.json says {result.get('top1_last')} %"


def check_accuracy(path: Path, data: Path | None, device: str) -> str | None:
    """Evaluates a finished trial's weights again. Returns the fault, or None.

    Args:
        path: The trial's folder, in which ``check_trial`` finds no faults.
        data, device: Folder of the data sets, None for the default; device of the evaluation.

    Raises:
        UserError: If the data set cannot be found.
    """
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.training.build import load_network
    from kd_bench.training.evaluate import evaluate_accuracy

    folder, settings = TrialFolder(path), _read_settings(path)
    images = datasets.open_dataset(settings.dataset, settings.pipeline, datasets.resolve_data_dir(data))
    network, view = load_network(settings, folder.weights, images)
    measured = evaluate_accuracy(network, view, images, torch.device(device)).top1
    recorded = (folder.result() or {})["top1_last"]
    if abs(measured - recorded) <= TOLERANCE:
        return None
    return f"{folder.weights}: has {measured:.2f} % when measured again, but result.json says {recorded:.2f} %"
