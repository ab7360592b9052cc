"""The rows of metrics of an epoch, as ``metrics.csv`` and ``preparation.csv`` have them, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kd_bench.utils.energy_counters import COLUMNS

#: Columns that depend on the machine's speed and counters, and on the company of the trial, also in equal trainings.
MEASURED = frozenset({"seconds", "own_seconds", "members", "spared_seconds", *COLUMNS.values()})


def describe_divergence(epoch: str, step: int, final_loss: float | None) -> str | None:
    """Returns the reason for the failure of a trial whose loss was not finite; None if it was.

    Args:
        epoch: The number of the epoch.
        step: The first step, from 0, whose loss was not finite; -1 if there is none.
        final_loss: The loss of the test images after the last epoch, since no further step shows what the last one
            has done to the weights; None after another epoch.
    """
    if step >= 0:
        return f"the loss was no longer finite in epoch {epoch}, step {step + 1}"
    if final_loss is not None and not math.isfinite(final_loss):
        return f"the loss of the test images was no longer finite after epoch {epoch}, the last one"
    return None


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
