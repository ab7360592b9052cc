"""What the class of a method must be like, and an instance of it. Its source has been checked before."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, get_args

from torch import nn

from kd_bench.methods._unrequested import describe_unrequested
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.methods.base import Method, TeacherBatchNorm
from kd_bench.types import Needs, Output, Pair

SUPER_FIRST = "__init__ should call super().__init__(pair) first"

_EXAMPLE = "Needs(student=frozenset({'stages'}))"


def class_problem(method: type[Method], parameters: Collection[str]) -> str | None:
    """Returns how a class breaks the rules of ``Method``, as a sentence; None if it does not.

    Args:
        method: The class.
        parameters: Names of its hyper-parameters.
    """
    for key, needs in (("needs", method.needs), ("preparation_needs", method.preparation_needs or Needs())):
        if not isinstance(needs, Needs):
            return f"{key} should be what kd_bench.types.Needs returns, e.g. {_EXAMPLE} (it is {needs!r:.60})"
    base = f"{AdversarialMethod.__module__}.{AdversarialMethod.__name__}"
    if method.family == "adversarial" and not issubclass(method, AdversarialMethod):
        return f"{method.__name__} has family = 'adversarial', so it should derive from {base}, which perturbs images"
    if method.family != "adversarial" and issubclass(method, AdversarialMethod):
        return f"{method.__name__} derives from {base}, so it should have family = 'adversarial'"
    functions = ("forward", "prepare") if "preparation_epochs" in parameters else ("forward",)
    for name in functions:
        if getattr(method, name) is getattr(Method, name):
            return f"{method.__name__} has no function {name}(self, student, teacher, batch), which returns the terms"
        taken = _wrong_arguments(method, name)
        if taken is not None:
            return f"{name} should take 'self, student, teacher, batch', not {taken!r}"
    return None


def _wrong_arguments(method: type[Method], name: str) -> str | None:
    """Returns the arguments of a function that cannot be called with three positional ones; None for others."""
    if isinstance(inspect.getattr_static(method, name), (staticmethod, classmethod)):
        return None
    with suppress(ValueError):  # not a function of Python
        signature = inspect.signature(getattr(method, name))
        try:
            signature.bind(None, None, None, None)  # the instance, student, teacher, batch
        except TypeError:
            return ", ".join(signature.parameters)
    return None


def construct(method: type[Method], pair: Pair, hyperparameters: Mapping[str, Any]) -> Method:
    """Returns an instance of a method. Errors of its ``__init__`` are raised again, with what may have caused them.

    Args:
        method: The class.
        pair: The pair.
        hyperparameters: All hyper-parameters.
    """
    built: Method = method.__new__(method, pair, **hyperparameters)  # type: ignore[call-arg]
    try:
        built.__init__(pair, **hyperparameters)  # type: ignore[misc]
    except (AttributeError, IndexError, TypeError) as error:
        # Python's and torch's messages are about a consequence: "'NoneType' object is not subscriptable", "cannot
        # assign module before ...".
        is_first = isinstance(error, AttributeError) and "pair" not in vars(built)
        cause = SUPER_FIRST if is_first else _unrequested_shapes(method, method.all_needs_with(hyperparameters))
        if cause:
            error.args = (f"{error}; {cause}",)
        raise
    return built


def _unrequested_shapes(method: type[Method], needs: Needs) -> str:
    """Returns which shapes of ``pair`` the source of ``__init__`` reads without a request; empty if there are none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method.__init__)))
    except (OSError, TypeError, SyntaxError):  # its source is not known
        return ""
    read: dict[str, set[str]] = {"student": set(), "teacher": set()}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="pair"), attr=network), attr=name):
                if network in read and name in get_args(Output):
                    read[network].add(name)
    return describe_unrequested(read, needs, owner="pair.")


def instance_problem(method: Method) -> str | None:
    """Returns how an instance breaks the rules of ``Method``, as a sentence; None if it does not."""
    attributes = vars(method)
    if "pair" not in attributes or "inference_head" not in {**attributes, **attributes.get("_modules", {})}:
        return SUPER_FIRST
    if not isinstance(method.needs, Needs):
        return f"needs should be what kd_bench.types.Needs returns, e.g. {_EXAMPLE} (it is {method.needs!r:.60})"
    modes = get_args(TeacherBatchNorm)
    if method.teacher_batch_norm not in modes:
        return f"teacher_batch_norm should be {' or '.join(map(repr, modes))} (it is {method.teacher_batch_norm!r:.60})"
    head: Any = method.inference_head
    if not (head is None or isinstance(head, nn.Module)):
        return f"inference_head should be a torch.nn.Module or None (it is {head!r:.60})"
    return None
