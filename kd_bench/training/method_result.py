"""Checks what a method returns for a batch, and sums it.

The checks read no values and nothing from the device, so they cost little and can be part of a recorded step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.utils.errors import UserError
from kd_bench.utils.plugins import display_path

_EXPECTED = 'it should return the loss by term, e.g. {"ce": self.label_loss(student, batch), "distance": distance}'


def sum_terms(terms: Any, method: nn.Module, device: torch.device, function: str = "forward") -> Tensor:
    """Returns the loss, a scalar: the sum of the terms that a method has returned.

    Args:
        terms: What the method has returned.
        method: The method, for the error message.
        device: The device of the batch.
        function: Name of the method's function that has returned them.

    Raises:
        UserError: If it is anything but a dictionary of scalar tensors by name, or if no term has a gradient.
    """
    check_terms(terms, method, device, function)
    loss = torch.stack(list(terms.values())).sum()
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(
            f"{_locate(method, function)} returns a loss without a gradient; compute it from the student's outputs, "
            "without .detach(), .data and torch.no_grad()"
        )
    return loss


def check_terms(terms: Any, method: nn.Module, device: torch.device, function: str = "forward") -> None:
    """Raises UserError if ``terms`` is anything but a dictionary of scalar tensors by name. As ``sum_terms``."""
    problem = _find_problem(terms, device)
    if problem is not None:
        raise UserError(f"{_locate(method, function)} {problem}")


def split_terms(terms: Mapping[str, Tensor], method: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the loss in two parts, for an optimiser that uses their gradients apart.

    Args:
        terms: What the method has returned, as ``sum_terms`` accepts it.
        method: The method, for the error message.

    Returns:
        The term "ce", which is the labels' loss, and the sum of all other terms, both scalars.

    Raises:
        UserError: If there is no such term or no other one, or if one of the parts has no gradient.
    """
    others = [term for name, term in terms.items() if name != "ce"]
    if "ce" not in terms:
        problem = f"returns no term 'ce', only {', '.join(map(repr, terms))}"
    elif not others:
        problem = "returns only the term 'ce'"
    else:
        task, distillation = terms["ce"], torch.stack(others).sum()
        if task.requires_grad and distillation.requires_grad:
            return task, distillation
        problem = f"returns {'the other terms' if task.requires_grad else 'the term ce'} without a gradient"
    raise UserError(
        f"{_locate(method, 'forward')} {problem}, and the optimiser 'dot' needs the gradient of the labels' loss, "
        "'ce', and that of the other terms; choose optimizer.name 'sgd' for this method"
    )


def _find_problem(terms: Any, device: torch.device) -> str | None:
    if terms is None:
        return f"returns nothing; {_EXPECTED}"
    if not isinstance(terms, Mapping):
        return f"returns {_describe(terms)}; {_EXPECTED}"
    if not terms:
        return f"returns an empty dictionary; {_EXPECTED}"
    for name, term in terms.items():
        if not isinstance(name, str):
            return f"returns a term whose name is {name!r:.60}; names should be text, e.g. 'ce'"
        if not isinstance(term, Tensor):
            return f"returns {_describe(term)} as term {name!r:.60}; it should be a scalar tensor, without .item()"
        if term.ndim:
            return f"returns {_describe(term)} as term {name!r:.60}; it should be a scalar, e.g. its .mean()"
        if term.device != device:
            return (
                f"returns a tensor on {term.device} as term {name!r:.60}; it should be where the batch is, on {device}"
            )
    return None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}" if value.ndim else "a tensor"
    return "None" if value is None else f"{value!r:.40} ({type(value).__name__})"


def _locate(method: nn.Module, function: str) -> str:
    """Returns "FILE, line N: CLASS.FUNCTION"."""
    subject = f"{type(method).__name__}.{function}"
    code = getattr(inspect.unwrap(getattr(type(method), function)), "__code__", None)
    return subject if code is None else f"{display_path(code.co_filename)}, line {code.co_firstlineno}: {subject}"
