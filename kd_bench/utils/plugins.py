"""Methods, networks, data sets and augmentations of the user's own, from a file or an installed package.

A plug-in is named as ``path/to/file.py:name``, or by its entry point in the group of its kind, whose value is
``package.module:name``. All but ``Plugin.load`` and ``Plugin.call`` read source only: neither torch nor anybody's code
is imported. A plug-in's identity is its one file, so that file should hold all that its results depend on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.signatures import ClassDefinition, Definition, read_definitions


@dataclass(frozen=True)
class PluginKind:
    """A kind of plug-in.

    Attributes:
        noun: What it is called in messages.
        group: Its group of entry points.
        takes: Names of the arguments that it is called with.
        may_take: Names of further arguments that it gets if it has them.
    """

    noun: str
    group: str
    takes: tuple[str, ...] = ()
    may_take: tuple[str, ...] = ()


METHOD = PluginKind("method", "kd_bench.methods", ("pair",))
MODEL = PluginKind("model", "kd_bench.models", ("num_classes",), ("image_size", "drop_path_rate"))
DATASET = PluginKind("dataset", "kd_bench.datasets", ("data_dir", "image_size"), ("generator",))
AUGMENTATION = PluginKind("augmentation", "kd_bench.augmentations", ("images", "random"))


@dataclass(frozen=True)
class Plugin:
    """Where a plug-in is.

    Attributes:
        kind: What it is.
        name: As trials name it.
        path: Its file.
        attribute: The class or function in it.
        module: How it is imported; None for a file of its own.
    """

    kind: PluginKind
    name: str
    path: Path
    attribute: str
    module: str | None = None

    def hash(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(_read(self.path)).hexdigest()

    def definition(self, context: str = "") -> Definition:
        """What its file says of it, whatever it is.

        Raises:
            UserError: If there is no such class or function.
        """
        found = read_definitions(self.path, context)
        if self.attribute not in found:
            if not found:
                raise UserError(f"{self._at(context)}: {self.path} holds no class and no function")
            raise unknown(f"class or function of {self.path}", self.attribute, found, context)
        return found[self.attribute]

    def source(self, context: str = "") -> Definition:
        """What its file says of it; for methods there are rules besides (see ``kd_bench.methods.registry``).

        Raises:
            UserError: If there is no such class or function, or it cannot be called as its kind is.
        """
        source = self.definition(context)
        if problem := self._problem(source):
            raise UserError(f"{self._at(context)}: {problem} ({self.path})")
        return source

    def _problem(self, source: Definition) -> str | None:
        if isinstance(source, ClassDefinition) and not source.has_init:
            return f"{source.name} has no __init__ of its own, which should take {' and '.join(self.kind.takes)}"
        for name in self.kind.takes:
            if not source.takes(name):
                return f"{source.name} should take {name!r}"
        for name in sorted(source.required.difference(self.kind.takes, self.kind.may_take)):
            return f"{source.name} is called without {name!r}, which therefore needs a default"
        return None

    def _at(self, context: str) -> str:
        return f"{context}: {self.kind.noun} {self.name!r}" if context else f"{self.kind.noun} {self.name!r}"

    def load(self) -> Any:
        """Imports it; this is where its code is run.

        Raises:
            UserError: If it cannot be imported, or is not there when it was.
        """
        try:
            module = _run_file(self.path) if self.module is None else importlib.import_module(self.module)
        except Exception as error:
            reason = f"{self.path} cannot be imported: {format_error(error)}"
            raise UserError(f"{self._at('')}: {reason}") from error
        found = getattr(module, self.attribute, None)
        if not callable(found):
            raise UserError(f"{self._at('')}: {self.attribute} in {self.path} is no class and no function")
        return found

    def call(self, **given: Any) -> Any:
        """Calls it with those of the arguments that it takes.

        Raises:
            UserError: As ``source`` and ``load``; and whatever error it raises itself becomes one.
        """
        source, function = self.source(), self.load()
        try:
            return function(**{name: value for name, value in given.items() if source.takes(name)})
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self._at('')}: {self.attribute} in {self.path} failed: {format_error(error)}") from error

    def refuse_changes(self, planned: str | None) -> None:
        """Makes sure that the file is the one that a trial was planned with.

        Args:
            planned: SHA-256 of that; None takes the file as it is.

        Raises:
            UserError: If it is not.
        """
        if planned is not None:
            refuse_changes(self.name, self.hash(), planned)


def refuse_changes(name: str, found: str | None, planned: str | None) -> None:
    """Makes sure that what a name stands for is what a trial was planned with.

    Args:
        name: As the trial has it.
        found: SHA-256 of its file; None for what comes with kd-bench or timm.
        planned: The same of when the trial was planned.

    Raises:
        UserError: If it is not.
    """
    if found != planned:
        raise UserError(f"{name}: the file was changed since this trial was planned; run the recipe again")


def format_error(error: Exception) -> str:
    """An error of somebody's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def is_file(name: str) -> bool:
    """Whether a name means something in a file of the user's own."""
    return name.endswith(".py") or ".py:" in name


def tidy(name: str) -> str:
    """A name as trials have it: ``./my.py:Mine`` and ``my.py:Mine`` are the same."""
    file, colon, attribute = name.rpartition(":")
    return f"{os.path.normpath(file)}:{attribute}" if colon and is_file(name) else name


def offered_names(kind: PluginKind) -> tuple[str, ...]:
    """The names that installed packages offer, sorted."""
    return tuple(sorted({point.name for point in _points(kind.group, tuple(sys.path))}))


def find(kind: PluginKind, name: str, known: Iterable[str] = (), context: str = "") -> Plugin:
    """A plug-in by its name.

    Args:
        kind: What it is.
        name: As the module's docstring tells.
        known: Other names of this kind that exist, for the error.
        context: Where the name was written, for the error.

    Raises:
        UserError: If there is no such file, or nobody offers such a name, or several packages do.
    """
    prefix = f"{context}: " if context else ""
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"{prefix}{kind.noun} {name!r}: there is no file {path}")
        return Plugin(kind, tidy(name), path.resolve(), attribute)
    if name.endswith(".py"):
        what = "class is missing; write {}:ClassName" if kind is METHOD else "name is missing; write {}:NAME"
        raise UserError(f"{prefix}{kind.noun} {name!r}: the {what.format(name)}")
    points = [point for point in _points(kind.group, tuple(sys.path)) if point.name == name]
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise UserError(f"{prefix}{kind.noun} {name!r} is offered by more than one package: {', '.join(values)}")
    if not points:
        raise unknown(kind.noun, name, {*known, *offered_names(kind)}, context)
    return _of_entry_point(kind, points[0], prefix)


@functools.cache
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of what is installed on ``path``."""
    return tuple(entry_points(group=group))


def _of_entry_point(kind: PluginKind, point: EntryPoint, prefix: str) -> Plugin:
    """Finds the file without importing any package on the way, which would run its code."""
    try:
        top, *rest = point.module.split(".")
        spec = importlib.util.find_spec(top)
        for depth in range(1, len(rest) + 1):
            inside = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(".".join([top, *rest[:depth]]), inside) if inside else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py") or not point.attr:
        what = "class" if kind is METHOD else "class or function"
        raise UserError(
            f"{prefix}{kind.noun} {point.name!r}: its entry point {point.value!r} leads to no {what} in a Python file"
        )
    return Plugin(kind, point.name, Path(spec.origin), point.attr, point.module)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _run_file(path: Path) -> ModuleType:
    """The module that a file is, compiled anew: a cached .pyc can be older than an edit within the same second."""
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
