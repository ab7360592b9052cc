"""Several processes, of which one has no test images: the others do not wait for it, and all have the same metrics."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.epoch_rows import MEASURED
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.metrics import MetricSums
from kd_bench.types import Batch
from tests.training.parts import CPU, MemoryWriter, splits, train, trial

#: An average of the weights is tested, too.
SETTINGS: dict[str, Any] = {"epochs": 1, "ema": 0.9}


class NoImages:
    """The test set of a process for which there are no images."""

    def __init__(self) -> None:
        self.corrupt: dict[Path, str] = {}

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Batch]:
        return iter(())


def metrics(member: Any) -> dict[str, Any]:
    (row,) = member.history
    values = {key: value for key, value in row.items() if key not in MEASURED}
    return values | {"classes": member.class_top1, "confusion": member.confusion.tolist()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    address, limit = f"file://{folder / 'meeting'}", timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    data, member_trial = splits(), trial("none", **SETTINGS)
    member = build_student(member_trial, data, None, MemoryWriter())
    own_train, own_test = loaders(member_trial, data, CPU)  # both processes train on the same batches
    fit(CohortModule([member]), own_train, NoImages() if rank else own_test, CPU)  # type: ignore[arg-type]
    torch.save(metrics(member), folder / f"{rank}.pth")
    dist.destroy_process_group()


def test_a_process_without_test_images_has_the_metrics_of_all(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert first == second
    (alone,) = train([trial("none", **SETTINGS)], splits())
    row = alone.states[-1]["history"][-1]
    assert {"top1", "test_loss", "average_top1", "train_loss"} <= first.keys()
    assert all(first[key] == value for key, value in row.items() if key not in MEASURED)


def test_sums_without_images_have_no_means() -> None:
    sums = MetricSums(by_class=True)
    assert (sums.compute(), sums.compute_by_class(), sums.compute_confusion()) == ({}, [], None)
