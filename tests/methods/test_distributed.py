"""What methods remember over several processes is what one process with all the images remembers."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kd_bench.types import Batch, Outputs
from kd_bench.utils.distributed import all_gather, all_reduce_sum, is_distributed
from tests.methods.cases import batch, call, make, outputs, teacher_outputs

PROCESSES = 2


def part(of: Outputs, rank: int) -> Outputs:
    rows = slice(16 * rank, 16 * (rank + 1))
    assert of.pooled is not None
    return Outputs(of.logits[rows], tuple(stage[rows] for stage in of.stages), (), of.pooled[rows])


def share(of: Batch, rank: int) -> Batch:
    rows = slice(16 * rank, 16 * (rank + 1))
    return replace(of, images=of.images[rows], labels=of.labels[rows], index=of.index[rows])


def remembers(student: Outputs, teacher: Outputs, samples: Batch) -> dict[str, torch.Tensor]:
    """What IKL with class weights and CRD remember after an epoch of one step."""
    buffers = {}
    for name in ("ikl_kd class", "crd"):
        method = make(name)
        call(method, student, teacher, samples)
        method.on_epoch_end()
        buffers |= {f"{name} {key}": value.clone() for key, value in method.named_buffers()}
    return buffers


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    results = remembers(part(outputs(1), rank), part(teacher_outputs(2), rank), share(batch(), rank))
    results["several"] = torch.tensor(is_distributed())
    results["summed"] = all_reduce_sum(torch.tensor([rank + 1.0]))
    results["gathered"] = all_gather(torch.full((2,), float(rank)))
    torch.save(results, folder / f"{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_remember_what_one_would(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(PROCESSES))
    assert first["several"]
    assert not is_distributed()
    assert first["summed"].tolist() == [3.0]
    assert first["gathered"].tolist() == [0.0, 0.0, 1.0, 1.0]
    alone = remembers(outputs(1), teacher_outputs(2), batch())
    for key, value in alone.items():
        torch.testing.assert_close(first[key], second[key])
        if "log_z" not in key:  # of the negatives that were drawn, which differ
            torch.testing.assert_close(first[key], value)
