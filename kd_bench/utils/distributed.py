"""Communication between the processes of a distributed run. With one process nothing is communicated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Returns the rank of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def init_process_group(device: torch.device) -> None:
    """Joins the process group that torchrun's environment variables describe: gloo for the CPU, NCCL for ``device``."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of ``values`` over all processes."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_reduce_max(value: int) -> int:
    """Returns the maximum of ``value`` over all processes."""
    maximum = torch.tensor(value)
    if is_distributed():
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def all_gather(values: Tensor) -> Tensor:
    """Concatenates the rows of all processes, by rank, without gradient.

    Args:
        values: (B, ...), with the same B in every process.

    Returns:
        (P B, ...) for P processes.
    """
    values = values.detach()
    if not is_distributed():
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def broadcast_object(value: Any) -> Any:
    """Returns the value of rank 0 in all processes."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


def gather_object(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank, in rank 0, and an empty list in the others."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def all_gather_object(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank, in all of them."""
    values = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all processes, whose parts of the batch are equally large.

    A parameter without gradient must have none in any process.
    """
    if not is_distributed():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replaces the running statistics of batch norms by their means over all processes."""
    if not is_distributed():
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            for buffer in (norm.running_mean, norm.running_var):
                dist.all_reduce(buffer)
                buffer.div_(world_size())
