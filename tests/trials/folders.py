"""Folders of finished trials, as a run leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_bench.config.trial import PretrainedTeacher, Trial

ENVIRONMENT = {
    "started": "2026-11-24T01:48:15+00:00",
    "host": "secret-host",
    "python": "3.11.7",
    "packages": {"torch": "2.14.1"},
    "device": "cpu",
    "threads": 1,
    "command": "kd-bench run",
    "earlier": [],
}


def finish(
    folder: Path, trial: Trial | PretrainedTeacher | Mapping[str, Any], top1: float = 50.0, **result: Any
) -> Path:
    """Writes the files of a finished trial: settings, environment, weights, metrics that fit the result, and result.

    Args:
        folder: The trial's folder, whose name should be the trial's id.
        trial: The settings.
        top1: Accuracy of the last epoch.
        result: Other keys of ``result.json``, instead of the usual.
    """
    settings = trial if isinstance(trial, Mapping) else trial.settings()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.json").write_text(json.dumps(settings, indent=2))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "student.safetensors").write_bytes(b"weights")
    write_result(folder, settings, top1_last=top1, **result)
    return folder


def write_result(folder: Path, settings: Mapping[str, Any], **fields: Any) -> None:
    """Writes result and metrics into a folder. ``fields`` are keys of ``result.json``."""
    epochs = 0 if "weights" in settings else settings["epochs"]
    top1 = fields.get("top1_last", 50.0)
    best = fields.get("top1_best", top1)
    result = {
        "status": "done",
        "reason": None,
        "top1_last": top1,
        "top1_best": best,
        "best_epoch": epochs if best == top1 else max(1, epochs - 1),
        "top5_last": 100.0,
        "epochs": epochs,
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        **fields,
    }
    (folder / "result.json").write_text(json.dumps(result))
    if epochs:
        write_metrics(folder, {result["best_epoch"]: best, epochs: top1}, epochs, result["top5_last"])


def write_metrics(folder: Path, top1: Mapping[int | None, float], epochs: int, top5: float | None) -> None:
    """Writes ``metrics.csv`` with these accuracies by epoch; those of the other epochs are 0."""
    lines = ["epoch,lr,top1,top5,test_loss,train_top1,train_loss,seconds,own_seconds,members"]
    lines += [
        f"{epoch},0.05,{top1.get(epoch, 0.0)},{'' if top5 is None else top5},1.5,40.0,2.5,4.0,3.0,1"
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
