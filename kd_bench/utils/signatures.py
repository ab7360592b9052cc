"""Reads what a Python file says of its classes and functions, without importing it.

Importing a method means importing torch, and importing somebody's plug-in means running it. Names, documentation and
hyper-parameters are known from the source in milliseconds, before any of that.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_bench.utils.errors import UserError


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


#: The default of a parameter that has none.
REQUIRED: Final = _Required()


@dataclass(frozen=True)
class NotLiteral:
    """The default of a parameter that only running the file would tell."""

    text: str
    line: int


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter."""

    name: str
    annotation: str
    """As it is written; empty where there is none."""
    default: Any
    """A literal's value, ``REQUIRED``, or a ``NotLiteral``."""
    text: str
    """What the docstring's ``Args:`` says of it, on one line."""


@dataclass(frozen=True)
class Definition:
    """What a file says of one of its functions, or of a class and its ``__init__``."""

    name: str
    doc: str
    parameters: tuple[Parameter, ...]
    """Keyword-only parameters, in order."""
    positional: tuple[str, ...]
    """Its other parameters, without ``self``; with a star, or two, where they take any number."""
    required: frozenset[str]
    """Names of all parameters that must be given."""

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    def takes(self, name: str) -> bool:
        """Whether it can be called with this keyword."""
        return name in self.positional or name in self.keywords or any(one.startswith("**") for one in self.positional)

    @property
    def keywords(self) -> dict[str, Parameter]:
        """Its keyword-only parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}


@dataclass(frozen=True)
class ClassDefinition(Definition):
    """What a file says of one of its classes; parameters are those of its own ``__init__``."""

    bases: tuple[str, ...]
    """Last parts of the bases' names: ``Method`` for ``base.Method``."""
    attributes: dict[str, Any]
    """The class attributes that are literals."""
    has_init: bool


def read_definitions(path: Path, context: str = "") -> dict[str, Definition]:
    """The functions and classes at the top level of a Python file, by name, in order.

    Args:
        path: The file.
        context: What asks for it, for error messages.

    Raises:
        UserError: If the file cannot be read, or is not Python.
    """
    prefix = f"{context}: " if context else ""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{prefix}{path} cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise UserError(f"{prefix}{path}, line {error.lineno}, is not valid Python: {error.msg}") from None
    except ValueError as error:  # null bytes
        raise UserError(f"{prefix}{path} is not valid Python: {error}") from None
    found: dict[str, Definition] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _read_class(node)
        elif isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node) or ""
            found[node.name] = Definition(node.name, doc, *_signature(node.args, arguments_in(doc)))
    return found


def read_classes(path: Path, context: str = "") -> dict[str, ClassDefinition]:
    """The classes at the top level of a Python file, as ``read_definitions`` gives them."""
    return {name: one for name, one in read_definitions(path, context).items() if isinstance(one, ClassDefinition)}


def _read_class(node: ast.ClassDef) -> ClassDefinition:
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    doc = ast.get_docstring(node) or ""
    texts = arguments_in(doc) | arguments_in((ast.get_docstring(init) or "") if init else "")
    parameters, positional, required = _signature(init.args, texts) if init else ((), (), frozenset())
    return ClassDefinition(
        name=node.name,
        doc=doc,
        parameters=parameters,
        positional=positional[1:],  # without self
        required=required - set(positional[:1]),
        bases=tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases),
        attributes=dict(_literals(node)),
        has_init=init is not None,
    )


def _signature(
    arguments: ast.arguments, texts: dict[str, str]
) -> tuple[tuple[Parameter, ...], tuple[str, ...], frozenset[str]]:
    """Keyword-only parameters, the names of the others, and the names of those without a default."""
    parameters = tuple(
        Parameter(one.arg, _annotation(one.annotation), _default(default, one.lineno), texts.get(one.arg, ""))
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    )
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    required = set(positional[: len(positional) - len(arguments.defaults)])
    required |= {one.name for one in parameters if one.default is REQUIRED}
    positional += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    positional += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return parameters, tuple(positional), frozenset(required)


def _default(node: ast.expr | None, line: int) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return NotLiteral(ast.unparse(node), line)


def _annotation(node: ast.expr | None) -> str:
    if node is None:
        return ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node)


def _literals(node: ast.ClassDef) -> list[tuple[str, Any]]:
    found = []
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        try:
            found.append((name, ast.literal_eval(value)))
        except ValueError:
            continue
    return found


_ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:, *\w+)*)(?: *\([^)]*\))?:(?:\s+(?P<text>.*))?$")


def arguments_in(doc: str) -> dict[str, str]:
    """What the ``Args:`` section of a Google-style docstring says, by name, each on one line.

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
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    current: list[str] = []
    depth = 0
    for line in lines[lines.index("Args:") + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            break
        depth = depth or indent
        entry = _ENTRY.match(line.strip()) if indent == depth else None
        if entry:
            current = [name.strip() for name in entry["names"].split(",")]
            found |= dict.fromkeys(current, (entry["text"] or "").strip())
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in current}
    return found
