"""Imports a pretrained teacher from a file of weights into the results folder, as a finished trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from kd_bench.config.trial import PretrainedTeacher
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models import weights
from kd_bench.training.build import load_network
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.trials.accuracy_cache import accuracy_key, cached_accuracy
from kd_bench.trials.environment import describe_environment, utc_timestamp
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Lease
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256


def import_teacher(
    teacher: PretrainedTeacher,
    file: Path,
    data: Path | None,
    device: str,
    threads: int,
    workers: int,
    folder: TrialFolder,
    lease: Lease,
    send_event: Callable[..., None],
) -> None:
    """Loads the weights strictly, evaluates them on the test set, and writes weights and result to the folder.

    The accuracy is that of the network with folded batch norms, which is the one that teaches. It is cached for images
    in memory, which have a hash; files could have changed without a trace.

    Args:
        teacher: The teacher.
        file: Its weights, in any layout that ``kd_bench.models.weights`` reads.
        data, device, threads, workers: As in ``WorkerJob``.
        folder, lease: The teacher's folder and the lease of it.
        send_event: Sends an event to the scheduler.

    Raises:
        UserError: If the file has changed since the run was planned, or does not hold this network's weights.
    """
    if sha256(file) != teacher.weights:
        raise UserError(f"{file}: has changed since this run was planned; run the recipe again")
    torch.set_num_threads(threads)
    splits = datasets.open_dataset(teacher.dataset, teacher.pipeline, datasets.resolve_data_dir(data))
    network, view = load_network(teacher, file, splits)

    def progress(step: int, steps: int) -> None:
        send_event("progress", epoch=0, step=step, steps=steps, rate=None)

    def measure() -> tuple[float, float]:
        measured = evaluate_accuracy(
            network, view, splits, torch.device(device), progress, folded=True, workers=workers
        )
        return measured.top1, measured.top5

    if isinstance(splits, ArrayDataset):
        top1, top5 = cached_accuracy(accuracy_key(teacher, splits, device, threads), measure)
    else:
        top1, top5 = measure()
    folder.write_environment({**describe_environment(device, threads), "images": splits.record})
    if not lease.is_held():
        return
    digest = weights.write(folder.weights, network.state_dict(), {"model": teacher.model, "trial": folder.id})
    folder.finish(
        {
            "status": "done",
            "reason": None,
            "top1_last": top1,
            "top1_best": top1,
            "top5_last": top5,
            "epochs": 0,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "finished": utc_timestamp(),
            "weights_file": file.name,
            "weights_sha256": digest,
            "images": splits.record,
        }
    )
    lease.release(finished=True)
    send_event("finished", trial=folder.id, status="done", reason=None, top1=top1)
