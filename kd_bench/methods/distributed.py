"""What a method remembers must be the same in every process of a distributed training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
