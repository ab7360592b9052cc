"""A student's steps on a few batches, one process of two, and the comparison of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models.outputs import observe
from kd_bench.training.build import build_network, build_student
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import split_micro_batches
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch
from tests.training.parts import CPU, MemoryWriter, trial

#: Without batch statistics, so that it does not matter how a batch is divided.
PLAIN = "test_vit"


def built(data: ArrayDataset, method: str = "kd", **changes: Any) -> tuple[StudentModule, nn.Module, list[Batch]]:
    """Returns a student, its teacher, and the batches of its first epoch."""
    member_trial = trial(method, **({"model": PLAIN, "batch_size": 8} | changes))
    teacher = build_network(member_trial.teacher, data)[0].eval()  # type: ignore[arg-type]
    return (
        build_student(member_trial, data, teacher, MemoryWriter()),
        teacher,
        list(loaders(member_trial, data, CPU)[0]),
    )


def stepped(
    member: StudentModule, teacher: nn.Module, batches: list[Batch], micro_batch: int | None = None
) -> dict[str, Tensor]:
    """Trains on the first three batches and returns the network's weights."""
    member.train()
    for batch in batches[:3]:
        for part in split_micro_batches(batch, micro_batch):
            with torch.no_grad():
                taught = observe(teacher, part.batch.images, member.method.needs.teacher)
            member.step(taught, part, Tensor.backward)
    assert not member.stopped
    return {key: value.clone() for key, value in member.network.state_dict().items()}


def step_as_one_of_two(rank: int, folder: Path, data: ArrayDataset, **changes: Any) -> None:
    """Joins the other process, trains on this one's half of each batch, and saves the weights as ``{rank}.pth``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    member, teacher, batches = built(data, **changes)
    rows = slice(4 * rank, 4 * rank + 4)
    halves = [
        Batch(batch.images[rows], batch.labels[rows], batch.index[rows], batch.epoch, batch.step) for batch in batches
    ]
    torch.save(stepped(member, teacher, halves), folder / f"{rank}.pth")


def close(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
