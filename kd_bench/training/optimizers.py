"""Optimisers and learning-rate schedules, from their settings."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from kd_bench.config.optimizer import SGD, AdamW, ConstantSchedule, CosineSchedule, Optimizer, Schedule


def build_optimizer(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that ``settings`` describe; weight decay applies to every parameter, as published, but LAMB's."""
    given = list(parameters)
    # One kernel for all parameters, where torch has it: it differs in last bits.
    fused = all(one.device.type in ("cpu", "cuda") and one.is_floating_point() for one in given)
    if isinstance(settings, SGD):
        return torch.optim.SGD(
            given,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=fused,
        )
    betas = (settings.beta1, settings.beta2)
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(given, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=fused)
    from timm.optim import Lamb as TimmLamb

    groups = [
        {"params": [one for one in given if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in given if one.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = TimmLamb(groups, lr=settings.lr, betas=betas, eps=settings.eps)
    return optimizer


def learning_rate(base: float, schedule: Schedule, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: a function of the epoch alone, so that there is no state to resume.

    Args:
        base: The optimiser's learning rate.
        schedule: How it changes; milestones are whole epochs by now.
        epoch: From 0. A milestone of 150 first shows in epoch 150, the 151st.
        epochs: All epochs.
    """
    if epoch < schedule.warmup_epochs:
        first = schedule.warmup_lr if isinstance(schedule, CosineSchedule) else None
        if first is None:
            return base * (epoch + 1) / (schedule.warmup_epochs + 1)
        return first + (base - first) * epoch / schedule.warmup_epochs
    if isinstance(schedule, ConstantSchedule):
        return base
    if isinstance(schedule, CosineSchedule):
        begin = 0 if schedule.whole else schedule.warmup_epochs
        done = (epoch - begin + schedule.inside) / max(1, epochs - begin + schedule.inside)
        return base * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done)))
    return base * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
