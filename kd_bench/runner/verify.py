"""Measures a finished network again."""

from __future__ import annotations

from pathlib import Path

from kd_bench.errors import RunFailed, UserError
from kd_bench.recipe import Trial
from kd_bench.runner.folder import TEACHERS, TrialFolder


def verify(trial: Trial, out: Path, data: Path | None, device: str) -> str:
    """Says how the teacher of a finished training does on the test set, and what its training recorded.

    Raises:
        UserError: Where it was not trained yet, or its weights are damaged.
        RunFailed: Where the accuracy is another.
    """
    folder = TrialFolder(out / TEACHERS / trial.id)
    folder.check()
    result = folder.result()
    if result is None or folder.status() != "done":
        raise UserError(
            f"{folder.path}: {trial.model} has not been trained with these settings; "
            f"train it with: kd-bench teacher train {trial.model} --dataset {trial.dataset.name}"
        )
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.training.fit import accuracy, load_network

    splits = datasets.load(
        trial.dataset.name, datasets.data_dir(data), labels=trial.dataset.labels, classes=trial.dataset.classes
    )
    network = load_network(trial, folder.weights, splits.num_classes)
    found = accuracy(network, splits, torch.device(device))
    report = f"{trial.model} on {trial.dataset.title}: {found:.2f} % now, {result['top1_last']:.2f} % after training"
    # A hit or two more or less is arithmetic of another machine; more is another network.
    if abs(found - result["top1_last"]) > 0.1:
        raise RunFailed(f"{report}; the two should agree: {folder.weights}")
    return report
