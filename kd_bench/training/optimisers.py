"""Optimisers and learning-rate schedules, from their settings."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from kd_bench.recipe import SGD, ConstantSchedule, CosineSchedule, Optimizer, Schedule


def build_optimizer(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that ``settings`` describe; weight decay applies to every parameter, as published."""
    if isinstance(settings, SGD):
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )


def learning_rate(base: float, schedule: Schedule, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: a function of the epoch alone, so that there is no state to resume.

    Args:
        base: The optimiser's learning rate.
        schedule: How it changes; milestones are whole epochs by now.
        epoch: From 0. A milestone of 150 first shows in epoch 150, the 151st.
        epochs: All epochs.
    """
    if epoch < schedule.warmup_epochs:
        return base * (epoch + 1) / (schedule.warmup_epochs + 1)
    if isinstance(schedule, ConstantSchedule):
        return base
    if isinstance(schedule, CosineSchedule):
        done = (epoch - schedule.warmup_epochs) / max(1, epochs - schedule.warmup_epochs)
        return base * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done)))
    return base * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
