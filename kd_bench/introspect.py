"""Reads what a Python file says of its classes, without importing it.

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

from kd_bench.errors import UserError


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


#: The default of a parameter that has none.
REQUIRED: Final = _Required()


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter of ``__init__``."""

    name: str
    annotation: str
    """As it is written; empty where there is none."""
    default: Any
    """A literal's value, or ``REQUIRED``."""
    text: str
    """What the docstring's ``Args:`` says of it, on one line."""


@dataclass(frozen=True)
class ClassSource:
    """What a file says of one of its classes."""

    name: str
    doc: str
    bases: tuple[str, ...]
    """Last parts of the bases' names: ``Method`` for ``base.Method``."""
    attributes: dict[str, Any]
    """The class attributes that are literals."""
    has_init: bool
    parameters: tuple[Parameter, ...]
    """Keyword-only parameters of the class's own ``__init__``, in order."""
    positional: tuple[str, ...]
    """Its other parameters, after ``self``; with a star, or two, where they take any number."""

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())


def read_classes(path: Path, where: str = "") -> dict[str, ClassSource]:
    """The classes at the top level of a Python file, by name, in order.

    Args:
        path: The file.
        where: What asks for it, for error messages.

    Raises:
        UserError: If the file cannot be read, is not Python, or gives a keyword-only parameter of ``__init__`` a
            default that is not a literal.
    """
    prefix = f"{where}: " if where else ""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{prefix}{path} cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise UserError(f"{prefix}{path}, line {error.lineno}, is not valid Python: {error.msg}") from None
    except ValueError as error:  # null bytes
        raise UserError(f"{prefix}{path} is not valid Python: {error}") from None
    return {node.name: _read_class(node, path, prefix) for node in tree.body if isinstance(node, ast.ClassDef)}


def _read_class(node: ast.ClassDef, path: Path, prefix: str) -> ClassSource:
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    doc = ast.get_docstring(node) or ""
    texts = arguments_in(doc) | arguments_in((ast.get_docstring(init) or "") if init else "")
    parameters: list[Parameter] = []
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if init else ():
        try:
            value = REQUIRED if default is None else ast.literal_eval(default)
        except ValueError:
            raise UserError(
                f"{prefix}{path}, line {argument.lineno}: the default of {argument.arg!r} should be a literal "
                f"(a number, a text, true or false), not {ast.unparse(default or argument)}"
            ) from None
        annotation = _annotation(argument.annotation)
        parameters.append(Parameter(argument.arg, annotation, value, texts.get(argument.arg, "")))
    return ClassSource(
        name=node.name,
        doc=doc,
        bases=tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases),
        attributes=dict(_literals(node)),
        has_init=init is not None,
        parameters=tuple(parameters),
        positional=tuple(_positional(init.args)) if init else (),
    )


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


def _positional(arguments: ast.arguments) -> list[str]:
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return names


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
