"""The rows of metrics of an epoch, as ``metrics.csv`` and ``preparation.csv`` have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_bench.utils.energy_counters import COLUMNS

#: Columns that depend on the machine's speed and counters, and on the company of the trial, also in equal trainings.
MEASURED = frozenset({"seconds", "own_seconds", "members", "spared_seconds", *COLUMNS.values()})


def student_row(
    epoch: int, learning_rate: float, train: Mapping[str, float], test: Mapping[str, float], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the row of one of the student's epochs.

    Args:
        epoch: From 0.
        learning_rate: In this epoch.
        train, test: Means over the images: accuracies in percent, the loss, and in training its terms.
        more: Further columns.
    """
    terms = {f"train_{name}": value for name, value in train.items() if name not in ("top1", "top5", "loss")}
    return {
        "epoch": epoch + 1,
        "lr": learning_rate,
        "top1": test["top1"],
        "top5": test["top5"],
        "test_loss": test["loss"],
        "train_top1": train["top1"],
        "train_loss": train["loss"],
        **terms,
        **more,
    }


def preparation_row(
    epoch: int, learning_rate: float, train: Mapping[str, float], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the row of one of the epochs of a preparation, counted from 0, which are not tested."""
    losses = {f"train_{name}": value for name, value in train.items()}
    return {"epoch": epoch + 1, "lr": learning_rate, **losses, **more}
