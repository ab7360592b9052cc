"""Checks what a method returns for a batch, and sums it.

The checks read no values and nothing from the device, so they cost little and can be part of a recorded step.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kd_bench.methods._unrequested import describe_unrequested
from kd_bench.types import Batch, Output, Outputs
from kd_bench.utils.errors import UserError, suggestion
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
        note = _unrequested(method, function)  # a sum over stages that are not there is the number 0
        problem += f" ({note})" if note else ""
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
    if isinstance(terms, tuple | list) and any(isinstance(part, Mapping) for part in terms):
        return f"returns {_describe(terms)}; return only the dictionary of losses"
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
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"{value!r:.40} ({type(value).__name__})"


def add_notes(error: Exception, method: nn.Module, function: str = "forward") -> None:
    """Adds a note to an error of a method, if its source reads outputs that it did not request or that do not exist.

    What was not requested is None or empty, so that Python's own message does not say what is wrong.

    Args:
        error: The error.
        method: The method.
        function: Name of its function that has raised the error.
    """
    if isinstance(error, UserError):
        return
    notes = [_unrequested(method, function)]
    if isinstance(error, AttributeError) and isinstance(error.obj, Outputs | Batch):
        names = [field.name for field in fields(error.obj)]
        notes.append(suggestion(str(error.name), names))
    for note in notes:
        if note and note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _unrequested(method: nn.Module, function: str) -> str:
    """Returns which outputs a function of the method reads that it did not request; empty if there are none."""
    try:
        needs = method.needs_in(function == "prepare")  # type: ignore[operator]
        read = _outputs_read(getattr(type(method), function))
    except (OSError, TypeError, SyntaxError, AttributeError, StopIteration):  # its source is not known
        return ""
    key = "needs" if needs is getattr(method, "needs", None) else "preparation_needs"
    return describe_unrequested(read, needs, key=key)


def _outputs_read(function: Callable[..., object]) -> dict[str, set[str]]:
    """Returns the names of the outputs of student and teacher that the source of ``forward`` reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    definition = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    arguments = [argument.arg for argument in (*definition.args.posonlyargs, *definition.args.args)][1:3]
    networks = dict(zip(arguments, ("student", "teacher"), strict=False))
    read: dict[str, set[str]] = {"student": set(), "teacher": set()}
    for node in ast.walk(definition):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in networks:
                if attribute in get_args(Output):
                    read[networks[name]].add(attribute)
    return read


def _locate(method: nn.Module, function: str) -> str:
    """Returns "FILE, line N: CLASS.FUNCTION"."""
    subject = f"{type(method).__name__}.{function}"
    code = getattr(inspect.unwrap(getattr(type(method), function)), "__code__", None)
    return subject if code is None else f"{display_path(code.co_filename)}, line {code.co_firstlineno}: {subject}"
