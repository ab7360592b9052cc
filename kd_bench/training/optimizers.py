"""Builds optimisers, computes learning rates, and averages weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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
        sgd = torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **shared)
        sgd.register_step_pre_hook(_begin_late_momenta)
        return sgd
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


def _begin_late_momenta(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gives parameters that have their first gradient after others a momentum of zero, as if they began now.

    These are e.g. layers of a method that warms up. Torch's fused kernel begins the momenta of all parameters or of
    none, and fails otherwise.
    """
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        late = [tensor for tensor in trained if optimizer.state.get(tensor, {}).get("momentum_buffer") is None]
        if len(late) < len(trained):
            for parameter in late:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def prepare_for_device(optimizer: torch.optim.Optimizer, device: torch.device, recordable: bool) -> None:
    """Prepares an optimiser whose parameters are on their device, and whose state may come from a checkpoint.

    The state takes the memory format of the parameters, which torch's optimisers require. AdamW's step counts are moved
    to the device, because Lightning leaves them where they were loaded.

    Args:
        optimizer: The optimiser.
        device: The device.
        recordable: Whether its steps may be recorded. Then the learning rate becomes a tensor on the device, except
            for LAMB, and AdamW counts its steps there.
    """
    takes_tensors = isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW, dot.DOT))
    for group in optimizer.param_groups:
        if takes_tensors and recordable and not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
        for parameter in group["params"]:
            values = optimizer.state.get(parameter, {})
            for name, value in values.items():
                if name == "step" and (group.get("fused") or group.get("capturable")):
                    values[name] = value.to(parameter.device, torch.float32)  # as the optimiser itself creates it
                elif isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = _with_layout_of(parameter, value)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameters. A tensor keeps its place in memory."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimiser as it was before its first step. LAMB counts steps outside of its state, in the groups."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)


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


def _with_layout_of(like: Tensor, value: Tensor) -> Tensor:
    """Returns ``value`` with the strides of ``like``, which has the same shape: itself if it has them, else a copy."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


class MovingAverage(AveragedModel):
    """A moving average of a network's weights and buffers whose updates can be recorded as part of a step.

    An update has the bits of torch's ``AveragedModel`` with ``get_ema_multi_avg_fn``, except that an integer that is
    the network's stays the same, where torch's may become one less. The first update copies the network. Torch's class
    reads from the device at every update whether it is the first; this class reads it once.

    Args:
        network: The network.
        decay: Share of the average that an update keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.requires_grad_(False)
        self._decay = decay
        self._has_begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Updates the average.

        Args:
            model: The network. Its tensors are on the device of the average.
        """
        by_type: defaultdict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for average, current in self._pairs(model):
            by_type[average.dtype].append((average, current))
        # Waits for the device, so it is read only at a process's first update, which is never recorded.
        self._has_begun = self._has_begun or bool(self.n_averaged)
        for dtype, pairs in by_type.items():
            averages, values = ([pair[side] for pair in pairs] for side in (0, 1))
            if not self._has_begun:
                torch._foreach_copy_(averages, values)
            elif dtype.is_floating_point or dtype.is_complex:
                torch._foreach_lerp_(averages, values, 1 - self._decay)
            else:
                self._average_integers(averages, values)
        self._has_begun = True
        self.n_averaged.add_(1)

    def _average_integers(self, averages: list[Tensor], values: list[Tensor]) -> None:
        """Averages integers and flags, all at once, because most are the counters of the many batch norms.

        The mean of two equal integers may be rounded to another one, and some networks have a table of indices.
        """
        average, current = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (averages, values))
        mean = (average * self._decay + current * (1 - self._decay)).to(average.dtype)
        mean = torch.where(average == current, current, mean)
        parts = mean.split([tensor.numel() for tensor in averages])
        torch._foreach_copy_(averages, [part.view_as(tensor) for part, tensor in zip(parts, averages, strict=True)])

    def take_layout(self, network: nn.Module) -> None:
        """Gives the average's tensors the strides of the network's, so that an update is few operations on a GPU."""
        for average, current in self._pairs(network):
            average.data = _with_layout_of(current, average.data)

    def _pairs(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each parameter and buffer of the average with the network's."""
        averages = chain(self.module.parameters(), self.module.buffers())
        return zip(averages, chain(network.parameters(), network.buffers()), strict=True)
