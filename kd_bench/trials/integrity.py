"""Checks the files of finished trials: settings, metrics, weights, and on request the accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kd_bench.trials.evaluation_file import evaluation_faults
from kd_bench.trials.images import check_same_images
from kd_bench.trials.reader import WEIGHTS, TrialRecord, read_trial, trial_settings
from kd_bench.trials.results_folder import folder_problem, is_trial_id
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256

#: Tolerance of a repeated measurement of the accuracy, in percentage points: the rounding of another machine may
#: change the prediction for an image or two.
TOLERANCE = 0.1


@dataclass(frozen=True)
class CheckedTrial:
    """The outcome of checking a trial.

    Attributes:
        path: The trial's folder.
        status: ``done``, ``failed``, ``unfinished``, ``damaged`` or ``changed by hand``.
        faults: One sentence for each fault.
    """

    path: Path
    status: str
    faults: tuple[str, ...]


def trial_folders(out: Path) -> list[Path]:
    """Returns the sorted folders of the trials in a results folder, or in the folder of one recipe.

    What has the name of a trial but is no folder is among them, because it stands where a trial was.

    Raises:
        UserError: If the folder is missing or cannot be read, or there are no trials in it.
    """
    if problem := folder_problem(out):
        raise UserError(f"{out}: {problem}")
    paths = (path for pattern in ("*", "*/*") for path in out.glob(pattern))
    folders = sorted(path for path in paths if is_trial_id(path.name))
    if not folders:
        raise UserError(f"{out}: there are no trials in this folder")
    return folders


def check_trial(path: Path, needs_weights: bool = True) -> CheckedTrial:
    """Checks the files of one trial. Computes the checksum of the weights but does not build the network.

    Args:
        path: The trial's folder.
        needs_weights: Whether a finished trial without weights has a fault.
    """
    record = read_trial(path)
    if record.is_damaged:
        status = "changed by hand" if record.verdict == "changed" else "damaged"
        return CheckedTrial(path, status, tuple(record.sentences))
    try:
        if record.settings is not None:
            trial_settings(record)
    except UserError as error:
        return CheckedTrial(path, "damaged", (str(error),))
    if record.result is None:
        return CheckedTrial(path, "unfinished", ())
    weights = path / WEIGHTS
    if record.verdict == "failed":
        return CheckedTrial(path, "failed", ())
    if not record.has_weights:
        faults = (f"{weights}: is missing; the result has no weights",) if needs_weights else ()
        return CheckedTrial(path, "done", (*faults, *_evaluation_faults(record)))
    try:
        checksum = sha256(weights)
    except OSError as error:
        return CheckedTrial(path, "damaged", (f"{weights}: cannot be read: {error.strerror}",))
    if checksum != record.result["weights_sha256"]:
        text = f"{weights}: is not what was written: its checksum differs from that in result.json"
        return CheckedTrial(path, "damaged", (text,))
    return CheckedTrial(path, "done", _evaluation_faults(record))


def _evaluation_faults(record: TrialRecord) -> tuple[str, ...]:
    """Returns what is wrong with the evaluation of a finished trial."""
    result = record.result or {}
    return tuple(evaluation_faults(record.path, result["weights_sha256"], result.get("images")))


def check_accuracy(path: Path, data: Path | None, device: str, workers: int = 0) -> str | None:
    """Evaluates a finished trial's weights again. Returns the fault, or None.

    Args:
        path: The trial's folder, in which ``check_trial`` finds no faults.
        data, device: Folder of the data sets, None for the default; device of the evaluation.
        workers: Processes that decode images, for data sets that are not held in memory.

    Raises:
        UserError: If the data set cannot be found.
    """
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.training.build import load_network
    from kd_bench.training.evaluate import evaluate_accuracy

    record = read_trial(path)
    settings, weights = trial_settings(record), path / WEIGHTS
    images = datasets.open_dataset(settings.dataset, settings.pipeline, datasets.resolve_data_dir(data))
    try:
        check_same_images(path, "its result is", record.result or {}, images.record)
    except UserError as error:
        return str(error)
    network, view = load_network(settings, weights, images)
    measured = evaluate_accuracy(network, view, images, torch.device(device), workers=workers).top1
    recorded = (record.result or {})["top1_last"]
    if abs(measured - recorded) <= TOLERANCE:
        return None
    return f"{weights}: has {measured:.2f} % when measured again, but result.json says {recorded:.2f} %"
