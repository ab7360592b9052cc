"""Computes the gradients of a step, and makes them ready for the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from kd_bench.training.dot import DOT
from kd_bench.training.method_result import split_terms
from kd_bench.utils.distributed import average_gradients


def add_gradients(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    terms: Mapping[str, Tensor],
    method: nn.Module,
    share: float,
    backward: Callable[[Tensor], None],
) -> None:
    """Adds the gradients of a micro-batch to those that the parameters have.

    ``DOT`` needs the gradients of the labels' loss and of the other terms apart, which takes two backward passes.

    Args:
        optimizer: The optimiser of the parameters.
        loss: The loss, a scalar.
        terms: Its terms by name.
        method: The method that has computed them, for the error message.
        share: Share of the micro-batch in the process's part of the batch.
        backward: Computes the gradients of a loss.

    Raises:
        UserError: If ``optimizer`` is ``DOT``, and the terms are not those of a task and of a distillation.
    """
    if not isinstance(optimizer, DOT):
        backward(scaled(loss, share))
        return
    task, distillation = split_terms(terms, method)
    with optimizer.distillation_gradients():
        scaled(distillation, share).backward(retain_graph=True)
    backward(scaled(task, share))


def finish_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
) -> None:
    """Averages the gradients of a step over all processes, and clips them.

    Args:
        optimizer: The optimiser of the parameters.
        parameters: The parameters.
        clip_norm: Largest norm of the loss's gradient; None for no limit. Both gradients of ``DOT`` are multiplied by
            one factor, that of their sum, which is the loss's gradient.
    """
    average_gradients(parameters)
    if isinstance(optimizer, DOT):
        with optimizer.distillation_gradients():
            average_gradients(parameters)
    if clip_norm is None:
        return
    if isinstance(optimizer, DOT):
        norm = get_total_norm(optimizer.gradient_sums())
        clip_grads_with_norm_(parameters, clip_norm, norm)
        with optimizer.distillation_gradients():
            clip_grads_with_norm_(parameters, clip_norm, norm)
    else:
        clip_grad_norm_(parameters, clip_norm)


def all_gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns the gradients that the next step of an optimiser would use."""
    if isinstance(optimizer, DOT):
        return optimizer.gradients()
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def scaled(loss: Tensor, share: float) -> Tensor:
    """Returns the part of a micro-batch's loss, a scalar, in the mean over a batch of which it has this share."""
    return loss if share == 1 else loss * share
