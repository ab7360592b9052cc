"""Takes a teacher whose weights come in a file into the results folder, as if it had been trained there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd_bench.config.trial import PretrainedTeacher
from kd_bench.data import registry as datasets
from kd_bench.models import weights
from kd_bench.training.fit import accuracy, load_network
from kd_bench.trials.environment import describe, now
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Lease
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256


def import_teacher(
    given: PretrainedTeacher,
    file: Path,
    data: Path | None,
    device: str,
    threads: int,
    folder: TrialFolder,
    lease: Lease,
    tell: Callable[..., Any],
) -> None:
    """Loads the weights strictly, measures them on the test set, and writes them and the result to the folder.

    Args:
        given: The teacher.
        file: Its weights, in any layout that can be read.
        data: Where data sets are; None for the default.
        device: Where to evaluate.
        threads: Threads of one operation on the CPU.
        folder: Its folder.
        lease: The right to write there.
        tell: Sends an event to the runner.

    Raises:
        UserError: Where the file is another than when the run was planned, or does not hold this network's weights.
    """
    if sha256(file) != given.weights:
        raise UserError(f"{file}: was changed since this run was planned; run the recipe again")
    torch.set_num_threads(threads)
    splits = datasets.images(given.dataset, given.pipeline, datasets.data_dir(data))
    network, view = load_network(given, file, splits)

    def progress(step: int, steps: int) -> None:
        tell("progress", epoch=0, step=step, steps=steps, rate=None)

    found = accuracy(network, view, splits, torch.device(device), progress)
    folder.write_environment(describe(device, threads))
    if not lease.held():
        return
    digest = weights.write(folder.weights, network.state_dict(), {"model": given.model, "trial": folder.id})
    folder.finish(
        {
            "status": "done",
            "reason": None,
            "top1_last": found.top1,
            "top1_best": found.top1,
            "top5_last": found.top5,
            "epochs": 0,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "finished": now(),
            "weights_file": file.name,
            "weights_sha256": digest,
        }
    )
    lease.release(finished=True)
    tell("finished", trial=folder.id, status="done", reason=None, top1=found.top1)
