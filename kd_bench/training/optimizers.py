"""Builds optimisers and averages of weights, and computes learning rates, from their settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_bench.config.optimizer import DOT, SGD, AdamW, ConstantSchedule, CosineSchedule, Optimizer, Schedule
from kd_bench.training import dot


def build_optimizer(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimiser that ``settings`` describe.

    Weight decay applies to every parameter, as published; with LAMB, to those of more than one dimension.
    """
    parameters = list(parameters)
    # One kernel for all parameters, if torch has it. It has other last bits than separate kernels.
    fused = all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)
    shared: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": fused}
    if isinstance(settings, SGD):
        return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **shared)
    if isinstance(settings, DOT):
        from torch._functorch import config as compiler_settings

        # Torch refuses a second backward pass through a compiled network that may reuse the first one's buffers.
        compiler_settings.donated_buffer = False
        return dot.DOT(parameters, momentum=settings.momentum, delta=settings.delta, **shared)
    betas = (settings.beta1, settings.beta2)
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(parameters, betas=betas, **shared)
    from timm.optim import Lamb as TimmLamb

    groups = [
        {"params": [tensor for tensor in parameters if tensor.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [tensor for tensor in parameters if tensor.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = TimmLamb(groups, lr=settings.lr, betas=betas, eps=settings.eps)
    return optimizer


def prepare_for_device(optimizer: torch.optim.Optimizer, device: torch.device, recordable: bool) -> None:
    """Prepares an optimiser whose parameters and state are on their device.

    The state takes the memory format of the parameters, which torch's optimisers require; it may come from a checkpoint
    of another device.

    Args:
        optimizer: The optimiser.
        device: The device.
        recordable: Whether its steps may be recorded. Then the learning rate becomes a tensor on the device, except
            for LAMB, and AdamW counts its steps there.
    """
    own = isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW, dot.DOT))
    for group in optimizer.param_groups:
        if own and recordable and not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameters. A tensor keeps its place in memory."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns ``optimizer.state_dict()`` with learning rates as numbers, whatever the device."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
    return state


def learning_rate(base: float, schedule: Schedule, epoch: int, epochs: int) -> float:
    """Returns the learning rate of an epoch. It depends on the epoch alone, so there is no state to resume.

    Args:
        base: The optimiser's learning rate.
        schedule: The schedule, whose milestones are numbers of epochs.
        epoch: From 0. A milestone of 150 first applies in epoch 150, the 151st.
        epochs: Number of all epochs.
    """
    if epoch < schedule.warmup_epochs:
        start = schedule.warmup_lr if isinstance(schedule, CosineSchedule) else None
        if start is None:
            return base * (epoch + 1) / (schedule.warmup_epochs + 1)
        return start + (base - start) * epoch / schedule.warmup_epochs
    if isinstance(schedule, ConstantSchedule):
        return base
    if isinstance(schedule, CosineSchedule):
        begin = 0 if schedule.whole else schedule.warmup_epochs
        progress = (epoch - begin + schedule.inside) / max(1, epochs - begin + schedule.inside)
        return base * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress)))
    return base * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Returns a moving average of a network's weights and buffers that keeps a share ``decay`` at each update."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)
