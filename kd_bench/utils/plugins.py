"""User-defined methods, networks, data sets and augmentations, from a file or an installed package.

A plug-in is named as ``path/to/file.py:name``, or by its entry point in the group of its kind, whose value is
``package.module:name``. Only ``Plugin.load`` and ``Plugin.call`` import its code; everything else reads the source. A
plug-in is identified by the hash of its file, so that file should contain everything that its results depend on.
``context`` is where a name was written, for error messages.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_bench.utils.errors import UserError, first_line, prefix, unknown
from kd_bench.utils.paths import expand_user, is_file
from kd_bench.utils.signatures import Definition, read_classes, read_definitions


@dataclass(frozen=True)
class PluginKind:
    """A kind of plug-in."""

    noun: str  # its name in messages
    group: str  # its group of entry points
    takes: tuple[str, ...] = ()  # names of the arguments that it is called with
    may_take: tuple[str, ...] = ()  # names of arguments that are passed if it has them
    target: str = "class or function"  # what its name may stand for


METHOD = PluginKind("method", "kd_bench.methods", ("pair",), target="class")
MODEL = PluginKind("model", "kd_bench.models", ("num_classes",), ("image_size", "drop_path_rate"))
DATASET = PluginKind("dataset", "kd_bench.datasets", ("data_dir", "image_size"), ("generator",))
AUGMENTATION = PluginKind("augmentation", "kd_bench.augmentations", ("images", "random"))

#: Files of the plug-ins that this process has imported.
_imported: set[str] = set()


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found but not imported."""

    kind: PluginKind
    name: str  # its name in trials
    path: Path  # its file
    attribute: str  # the class or function in the file
    module: str | None = None  # the module to import; None for a file that is not installed

    def hash(self) -> str:
        """Returns the SHA-256 of its file."""
        return hashlib.sha256(_read(self.path)).hexdigest()

    def definition(self, context: str = "") -> Definition:
        """Returns its definition, or raises UserError if the file has no such class or function."""
        if self.module is not None:  # the name is that of an entry point, and does not show what it leads to
            context = f"{prefix(context)}{self.kind.noun} {self.name!r}"
        definitions = (read_classes if self.kind is METHOD else read_definitions)(self.path, context)
        if not definitions:
            raise self._error(f"{self.path} holds no {self.kind.target.replace(' or ', ' and no ')}", context)
        if self.attribute not in definitions:
            raise unknown(f"{self.kind.target} of {self.path}", self.attribute, definitions, context)
        return definitions[self.attribute]

    def check(self, context: str = "") -> Definition:
        """Checks that it can be called with the arguments of its kind, and returns its definition.

        Methods have further rules, see ``kd_bench.methods._registry``.

        Raises:
            UserError: If there is no such class or function, or it cannot be called so.
        """
        definition = self.definition(context)
        problems = []
        if not definition.has_init:
            problems.append(f"has no __init__ of its own, which should take {' and '.join(self.kind.takes)}")
        problems += [f"should take {name!r}" for name in self.kind.takes if not definition.takes(name)]
        for name in sorted(definition.required.difference(self.kind.takes, self.kind.may_take)):
            problems.append(f"is called without {name!r}, which therefore needs a default")
        if problems:
            raise self._error(f"{definition.name} {problems[0]} ({self.path})", context)
        return definition

    def _error(self, problem: str, context: str = "") -> UserError:
        return UserError(f"{prefix(context)}{self.kind.noun} {self.name!r}: {problem}")

    def load(self) -> Any:
        """Imports it, which runs its code, and returns the class or function.

        Raises:
            UserError: If it cannot be imported, or the module has no such class or function.
        """
        _imported.add(str(self.path))
        with one_sentence(str(self._error(f"{self.path} cannot be imported"))):
            module = _run_file(self.path) if self.module is None else importlib.import_module(self.module)
        loaded = getattr(module, self.attribute, None)
        if not callable(loaded):
            raise self._error(f"{self.attribute} in {self.path} is no class and no function")
        return loaded

    def call(self, **arguments: Any) -> Any:
        """Calls it with those of the arguments that it takes.

        Raises:
            UserError: As ``check`` and ``load``, and if it raises any error.
        """
        definition, function = self.check(), self.load()
        with one_sentence(str(self._error(f"{self.attribute} in {self.path} failed")), UserError):
            return function(**{name: value for name, value in arguments.items() if definition.takes(name)})

    def refuse_changes(self, planned: str | None) -> None:
        """Raises UserError if the SHA-256 of its file is not ``planned``. None accepts any file."""
        if planned is not None:
            refuse_changes(self.name, self.hash(), planned)


def refuse_changes(name: str, digest: str | None, planned: str | None) -> None:
    """Raises UserError if the SHA-256 of a plug-in's file is not the planned one; None stands for no plug-in."""
    if digest != planned:
        raise UserError(f"{name}: the file was changed since this trial was planned; run the recipe again")


@contextmanager
def one_sentence(subject: str, *unchanged: type[Exception]) -> Iterator[None]:
    """Replaces errors of a plug-in's code by a UserError of one line: ``subject``, and the error's type and message.

    The line of the plug-in that has led to the error stands at the end.
    """
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        location = _find_line(error)
        line = f" (line {location[1]})" if location else ""
        raise UserError(f"{subject}: {' '.join(f'{type(error).__name__}: {error}'.split())}{line}") from error


def describe_error(error: Exception) -> str:
    """Returns one line about an error: the line of a plug-in that led to it, if any, its type, message and notes."""
    if isinstance(error, UserError):
        return first_line(error)
    location = _find_line(error)
    prefix = f"{display_path(location[0])}, line {location[1]}: " if location else ""
    message = str(error).strip().partition("\n")[0]
    notes = "".join(f"; {' '.join(note.split())}" for note in getattr(error, "__notes__", ()))
    return f"{prefix}{type(error).__name__}: {message}{notes}"


def display_path(path: str) -> str:
    """Returns a path as a user would write it: relative if it is below the working folder."""
    with suppress(OSError, ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path


def _find_line(error: BaseException) -> tuple[str, int] | None:
    """Returns file and line of the innermost call in the file of an imported plug-in; None if there is none."""
    calls = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__))
    return next(reversed([(file, line) for file, line in calls if file in _imported]), None)


def is_file_name(name: str) -> bool:
    """Whether a name refers to a user's file."""
    return name.endswith(".py") or ".py:" in name


def normalise_name(name: str) -> str:
    """Returns the normal form of a name, which trials use: ``my.py:Mine`` for ``./my.py:Mine``."""
    file, colon, attribute = name.rpartition(":")
    return f"{os.path.normpath(file)}:{attribute}" if colon and is_file_name(name) else name


def entry_point_names(kind: PluginKind) -> tuple[str, ...]:
    """Returns the names of a kind in installed packages, sorted."""
    return tuple(sorted({point.name for point in _entry_points(kind.group, tuple(sys.path))}))


def find(kind: PluginKind, name: str, known: Iterable[str] = (), context: str = "") -> Plugin:
    """Finds a plug-in. ``known`` are other names of its kind, for the error message.

    Raises:
        UserError: If the file or the entry point does not exist, or several packages have such an entry point.
    """
    subject = f"{prefix(context)}{kind.noun} {name!r}"
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        path = expand_user(file)
        if not is_file(path):
            raise UserError(f"{subject}: there is no file {path}")
        return Plugin(kind, normalise_name(name), path.resolve(), attribute)
    if name.endswith(".py"):
        missing = "class is missing; write {}:ClassName" if kind is METHOD else "name is missing; write {}:NAME"
        raise UserError(f"{subject}: the {missing.format(name)}")
    points = {point.value: point for point in _entry_points(kind.group, tuple(sys.path)) if point.name == name}
    if len(points) > 1:
        raise UserError(f"{subject} is offered by more than one package: {', '.join(sorted(points))}")
    if not points:
        raise unknown(kind.noun, name, {*known, *entry_point_names(kind)}, context)
    (point,) = points.values()
    file = _module_file(point.module)
    if not file:
        raise UserError(f"{subject}: there is no module {point.module!r}, which its entry point {point.value!r} names")
    if not file.endswith(".py") or not point.attr:
        raise UserError(f"{subject}: its entry point {point.value!r} leads to no {kind.target} in a Python file")
    return Plugin(kind, name, Path(file), point.attr, point.module)


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Returns the entry points of the packages on ``path``, which is ``sys.path`` and the key of the cache."""
    return tuple(entry_points(group=group))


def _module_file(module: str) -> str:
    """Returns the file of a module, or "". Does not import the packages around it, which would run their code."""
    try:
        top, *rest = module.split(".")
        spec = importlib.util.find_spec(top)
        for depth, _ in enumerate(rest, 1):
            folders = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(".".join([top, *rest[:depth]]), folders) if folders else None
    except (ImportError, ValueError, AttributeError):
        return ""
    return (spec.origin or "") if spec else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _run_file(path: Path) -> ModuleType:
    """Imports a file, compiled anew, because a cached .pyc can be older than an edit within the same second."""
    code = _read(path)
    name = f"kd_bench_plugin_{hashlib.sha256(str(path).encode() + code).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(code, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
