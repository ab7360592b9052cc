"""The optimiser of DOT, which keeps the gradient of the labels' loss apart from that of the distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class DOT(torch.optim.Optimizer):
    """Stochastic gradient descent with a momentum for each of two losses.

    Source: Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023. With g_c the gradient of the task, which is
    the labels' loss, and g_d that of the distillation, a step is::

        v_c <- (momentum - delta) v_c + g_c + weight_decay w
        v_d <- (momentum + delta) v_d + g_d
        w   <- w - lr (v_c + v_d)

    In the first step v_c and v_d are the terms that are added to them. A parameter that only one of the losses depends
    on is trained as by ``torch.optim.SGD`` with ``momentum`` and ``weight_decay``. (In the published code its weight
    does not decay in the first step if that loss is the distillation.)

    ``parameter.grad`` is g_c outside of ``distillation_gradients()`` and g_d inside.

    Args:
        parameters: The parameters.
        lr: Learning rate; a tensor on the parameters' device if steps are recorded.
        momentum, delta: Their sum is the momentum of the distillation, and their difference that of the task.
        weight_decay: Factor of the weights in the gradient.
        fused: Whether torch's fused kernel is used, as for ``torch.optim.SGD``.
        foreach: The same for its operators on lists.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | Tensor,
        momentum: float,
        delta: float,
        weight_decay: float,
        *,
        fused: bool | None = None,
        foreach: bool | None = None,
    ) -> None:
        if not 0 <= delta <= momentum < 1 - delta or not momentum:
            raise ValueError(f"DOT needs momenta from 0 to below 1 (they are {momentum} - {delta} and + {delta})")
        defaults = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(parameters, defaults | {"fused": fused, "foreach": foreach})
        self._distillation: dict[nn.Parameter, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a state. Gradients are not part of it."""
        super().__setstate__(state)
        self._distillation = {}

    @contextmanager
    def distillation_gradients(self) -> Iterator[None]:
        """Inside, ``parameter.grad`` are the gradients of the distillation, and not those of the task."""
        self._exchange_gradients()
        try:
            yield
        finally:
            self._exchange_gradients()

    def _exchange_gradients(self) -> None:
        hidden, self._distillation = self._distillation, {}
        for parameter in self._parameters():
            if parameter.grad is not None:
                self._distillation[parameter] = parameter.grad
            parameter.grad = hidden.get(parameter)

    def gradient_sums(self) -> list[Tensor]:
        """Returns the gradient of the whole loss, for each parameter that has one."""
        sums = []
        for parameter in self._parameters():
            task, distillation = parameter.grad, self._distillation.get(parameter)
            if task is not None:
                sums.append(task if distillation is None else task + distillation)
            elif distillation is not None:
                sums.append(distillation)
        return sums

    def gradients(self) -> list[Tensor]:
        """Returns all gradients, those of the task and those of the distillation."""
        task = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        return [*task, *self._distillation.values()]

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets the gradients of the task to None or to zero, and those of the distillation to None."""
        super().zero_grad(set_to_none)
        self._distillation = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes a step.

        Raises:
            ValueError: If there is a ``closure``, which can compute one loss only.
        """
        if closure is not None:
            raise ValueError("DOT has no steps with a closure, because it needs the gradients of two losses")
        for group in self.param_groups:
            momentum, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            parameters: list[nn.Parameter] = group["params"]
            task = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
            distillation = {key: self._distillation[key] for key in parameters if key in self._distillation}
            # The task comes first, because its weight decay is that of the weights before the step.
            for name, gradients, others, own_momentum, own_decay in (
                ("task_momentum", task, distillation, momentum - delta, decay),
                ("distillation_momentum", distillation, task, momentum + delta, 0.0),
            ):
                both = [parameter for parameter in gradients if parameter in others]
                alone = [parameter for parameter in gradients if parameter not in others]
                self._descend(group, name, both, gradients, own_momentum, own_decay)
                self._descend(group, name, alone, gradients, momentum, decay)

    def _descend(
        self,
        group: dict[str, Any],
        name: str,
        parameters: Sequence[nn.Parameter],
        gradients: Mapping[nn.Parameter, Tensor],
        momentum: float,
        weight_decay: float,
    ) -> None:
        """Makes a step of SGD with the momentum that the state has under this name."""
        for started in (True, False):  # torch's kernel starts a momentum for all parameters or for none
            chosen = [parameter for parameter in parameters if (name in self.state[parameter]) is started]
            momenta = [self.state[parameter].get(name) for parameter in chosen]
            if not momentum:  # torch would leave the buffers as they are, which later steps may read
                for buffer in momenta:
                    if buffer is not None:
                        buffer.zero_()
            sgd(
                list(chosen),
                [gradients[parameter] for parameter in chosen],
                momenta,
                lr=group["lr"],
                momentum=momentum or group["momentum"],
                weight_decay=weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                fused=group["fused"],
                foreach=group["foreach"],
            )
            for parameter, buffer in zip(chosen, momenta, strict=True):
                self.state[parameter][name] = buffer
