"""Processes that train together: what they must have in common. With one process all of this does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes; ``values`` themselves where there is one."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """Every process's rows, in the order of the processes; no gradient passes.

    Args:
        values: (B, ...), with as many rows in every process.

    Returns:
        (P B, ...) for P processes.
    """
    values = values.detach()
    if not is_distributed():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def rank() -> int:
    """The number of this process, from 0, among those that train together."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def init_process_group(device: torch.device) -> None:
    """Waits for the other processes; address, numbers and counts are in the environment, as torchrun has them there.

    Args:
        device: This process's. What lies on the CPU goes by gloo, what lies on a GPU by NCCL.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def broadcast_object(value: Any) -> Any:
    """What the first process gives, in all of them."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


def all_reduce_max(value: int) -> int:
    """The greatest of what the processes give, in all of them."""
    if not is_distributed():
        return value
    greatest = torch.tensor(value)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def gather_object(value: Any) -> list[Any]:
    """What each process gives, in their order, in the first of them; nothing in the others."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def all_gather_object(value: Any) -> list[Any]:
    """What each process gives, in their order, in all of them."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all processes, which have equally large parts of the batch.

    A parameter that has no gradient has none in any process.
    """
    if not is_distributed():
        return
    gradients = [one.grad for one in parameters if one.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for one, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        one.copy_(mean.view_as(one))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replaces the floating-point buffers of batch norms by their means over all processes."""
    if not is_distributed():
        return
    for one in module.modules():
        if isinstance(one, _BatchNorm) and one.running_mean is not None and one.running_var is not None:
            for buffer in (one.running_mean, one.running_var):
                dist.all_reduce(buffer)
                buffer.div_(dist.get_world_size())
