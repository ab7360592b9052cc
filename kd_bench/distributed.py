"""Processes that train together: what they must have in common. With one process all of this does nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def several() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes; ``values`` themselves where there is one."""
    if several():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """Every process's rows, in the order of the processes; no gradient passes.

    Args:
        values: (B, ...), with as many rows in every process.

    Returns:
        (P B, ...) for P processes.
    """
    values = values.detach()
    if not several():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def rank() -> int:
    """The number of this process, from 0, among those that train together."""
    return dist.get_rank() if several() else 0


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all processes, which have equally large parts of the batch.

    A parameter that has no gradient has none in any process.
    """
    if not several():
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
    if not several():
        return
    for one in module.modules():
        if isinstance(one, _BatchNorm) and one.running_mean is not None and one.running_var is not None:
            for buffer in (one.running_mean, one.running_var):
                dist.all_reduce(buffer)
                buffer.div_(dist.get_world_size())
