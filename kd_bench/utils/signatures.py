"""Reads the signatures and docstrings of a Python file without importing it.

Importing a method would import torch, and importing a plug-in would run it. Reading the source takes milliseconds.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_bench.utils.errors import UserError, prefix

#: The default of a parameter that has none.
REQUIRED: Final = inspect.Parameter.empty


@dataclass(frozen=True)
class NotLiteral:
    """The default of a parameter whose value is known only after running the file."""

    text: str
    line: int


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter."""

    name: str
    annotation: str  # as written; empty if there is none
    default: Any  # the value of a literal, REQUIRED, or a NotLiteral
    text: str  # the description in the docstring's "Args:", on one line


@dataclass(frozen=True)
class Definition:
    """A function, or a class and its own ``__init__``."""

    name: str
    doc: str
    parameters: tuple[Parameter, ...]  # keyword-only
    positional: tuple[str, ...]  # names of the others, without self; variable arguments with their stars
    required: frozenset[str]  # names of all parameters without a default
    is_class: bool
    has_init: bool  # whether a class has an __init__ of its own; true for a function
    bases: tuple[str, ...]  # last parts of their names: "Method" for "base.Method"
    attributes: dict[str, Any]  # class attributes whose values are literals

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def keywords(self) -> dict[str, Parameter]:
        """Keyword-only parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    def takes(self, name: str) -> bool:
        """Whether it can be called with this keyword."""
        return name in {*self.positional, *self.keywords} or any(other.startswith("**") for other in self.positional)


def read_definitions(path: Path, context: str = "") -> dict[str, Definition]:
    """Reads the functions and classes at the top level of a Python file, by name, in order.

    Args:
        path: The file.
        context: Where the file is named, for error messages.

    Raises:
        UserError: If the file cannot be read or is not Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        problem = f" cannot be read: {error.strerror}"
    except SyntaxError as error:
        problem = f", line {error.lineno}, is not valid Python: {error.msg}"
    except ValueError as error:  # null bytes
        problem = f" is not valid Python: {error}"
    else:
        nodes = (node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
        return {node.name: _definition(node) for node in nodes}
    raise UserError(f"{prefix(context)}{path}{problem}")


def read_classes(path: Path, context: str = "") -> dict[str, Definition]:
    """Reads the classes at the top level of a Python file, like ``read_definitions``."""
    return {name: source for name, source in read_definitions(path, context).items() if source.is_class}


def _definition(node: ast.ClassDef | ast.FunctionDef) -> Definition:
    is_class = isinstance(node, ast.ClassDef)
    functions = (part for part in node.body if isinstance(part, ast.FunctionDef))
    init = node if isinstance(node, ast.FunctionDef) else next((f for f in functions if f.name == "__init__"), None)
    doc = ast.get_docstring(node) or ""
    texts = arguments_in(doc) | arguments_in((ast.get_docstring(init) or "") if init else "")
    arguments = init.args if init else ast.arguments([], [], None, [], [], None, [])
    parameters = tuple(
        Parameter(part.arg, _annotation(part.annotation), _default(default, part.lineno), texts.get(part.arg, ""))
        for part, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    )
    positional = [part.arg for part in (*arguments.posonlyargs, *arguments.args)]
    required = set(positional[: len(positional) - len(arguments.defaults)])
    required |= {parameter.name for parameter in parameters if parameter.default is REQUIRED}
    positional += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    positional += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    bound = positional[:1] if is_class else []  # self
    return Definition(
        name=node.name,
        doc=doc,
        parameters=parameters,
        positional=tuple(positional[len(bound) :]),
        required=frozenset(required.difference(bound)),
        is_class=is_class,
        has_init=init is not None,
        bases=tuple(ast.unparse(base).rpartition(".")[2] for base in getattr(node, "bases", ())),
        attributes=_attributes(node) if is_class else {},
    )


def _default(node: ast.expr | None, line: int) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return NotLiteral(ast.unparse(node), line)


def _annotation(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node) if node else ""


def _attributes(node: ast.ClassDef | ast.FunctionDef) -> dict[str, Any]:
    attributes = {}
    for statement in node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                default = _default(value, 0)
                if not isinstance(default, NotLiteral):
                    attributes[name] = default
    return attributes


_ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:, *\w+)*)(?: *\([^)]*\))?:(?:\s+(?P<text>.*))?$")


def arguments_in(doc: str, section: str = "Args") -> dict[str, str]:
    """Returns the descriptions in the ``Args:`` section of a Google-style docstring, by name, each on one line.

    Args:
        doc: The docstring.
        section: Another section that has the same form: "Attributes".

    >>> arguments_in('''Does things.
    ...
    ... Args:
    ...     rate: How fast,
    ...         in metres a second.
    ...     left, right: Ends.
    ... ''')
    {'rate': 'How fast, in metres a second.', 'left': 'Ends.', 'right': 'Ends.'}
    """
    lines = inspect.cleandoc(doc).splitlines()
    if f"{section}:" not in lines:
        return {}
    texts: dict[str, str] = {}
    names: list[str] = []
    depth = 0
    for line in filter(str.strip, lines[lines.index(f"{section}:") + 1 :]):
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            break
        depth = depth or indent
        entry = _ENTRY.match(line.strip()) if indent == depth else None
        if entry:
            names = [name.strip() for name in entry["names"].split(",")]
            texts |= dict.fromkeys(names, (entry["text"] or "").strip())
        else:
            texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
    return texts
