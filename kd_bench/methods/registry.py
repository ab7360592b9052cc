"""The methods by name: what is known of each without importing it, checking hyper-parameters, and building it.

A method is named in one of three ways: a built-in one by its file in this folder (``ikl_kd``); one of an installed
package by its entry point in the group ``kd_bench.methods``, whose value is ``package.module:ClassName`` (built-in
names win); any other as ``path/to/file.py:ClassName``. All but ``build`` read source only: neither torch nor anybody's
plug-in is imported. A plug-in's identity is its one file, so that file should hold all that its results depend on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from kd_bench.errors import UserError, nearest, unknown
from kd_bench.introspect import REQUIRED, ClassSource, Parameter, read_classes
from kd_bench.methods.parameters import allowed, coerce, resolve

if TYPE_CHECKING:
    from kd_bench.methods.base import Family, Method
    from kd_bench.types import Pair

GROUP = "kd_bench.methods"
_FOLDER = Path(__file__).parent
_NO_METHODS = {"__init__", "adversarial", "base", "class_prior", "connectors", "parameters", "registry"}


@dataclass(frozen=True)
class MethodInfo:
    """What a method's source says of it."""

    name: str
    class_name: str
    summary: str
    doc: str
    parameters: tuple[Parameter, ...]
    path: Path
    family: Family
    needs_teacher: bool
    demands: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Location:
    """Where a method's class is: its file, its name (None: the only public class), and how it is imported."""

    path: Path
    class_name: str | None
    module: str | None
    kind: Literal["built-in", "package", "file"]


def names() -> tuple[str, ...]:
    """The methods that are known by name, sorted: the built-in ones and those of installed packages."""
    return tuple(sorted(_built_in() | {point.name for point in entry_points(group=GROUP)}))


def describe(name: str, where: str = "") -> MethodInfo:
    """What is known of a method without importing it.

    Args:
        name: As the module's docstring tells.
        where: Where it was written, for error messages.

    Raises:
        UserError: If there is no such method, or its source does not follow the rules of ``Method``.
    """
    location = _locate(name, where)
    source = _class_source(name, location, where)
    problem = _problem(source)
    if problem:
        raise UserError(f"{_prefix(where)}method {name!r}: {problem} ({location.path})")
    defaults = read_classes(_FOLDER / "base.py")["Method"].attributes
    attributes = defaults | source.attributes
    return MethodInfo(
        name=name,
        class_name=source.name,
        summary=source.summary,
        doc=source.doc,
        parameters=source.parameters,
        path=location.path,
        family=attributes["family"],
        needs_teacher=attributes["needs_teacher"],
        demands=attributes.get("demands", ()),
    )


def check(name: str, hyperparameters: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """All hyper-parameters of a method, in the order of its signature, each in its type's one form.

    Args:
        name: The method.
        hyperparameters: Those that are given; the others have their defaults.
        where: Where they were written, for error messages.

    Raises:
        UserError: For an unknown method or hyper-parameter, and for a value of the wrong type or out of range.
    """
    info = describe(name, where)
    known = [parameter.name for parameter in info.parameters]
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"{_prefix(where)}{name} has no hyper-parameter {key!r}; {_hint(str(key), known)}")
    resolved = {}
    for parameter in info.parameters:
        value = hyperparameters.get(parameter.name, parameter.default)
        kind = resolve(parameter.annotation)
        if value is REQUIRED:
            raise UserError(f"{_prefix(where)}{name} needs a value for {parameter.name!r}: {allowed(kind)}")
        try:
            resolved[parameter.name] = coerce(kind, value)
        except ValueError:
            raise UserError(f"{_prefix(where)}{name}: {parameter.name} = {value!r} should be {allowed(kind)}") from None
    return resolved


def load(name: str) -> type[Method]:
    """Imports a method's class; this is where torch, and a plug-in's code, is run.

    Args:
        name: The method.

    Raises:
        UserError: As ``describe``; and for a plug-in that cannot be imported, is no ``Method``, or says something else
            of itself when it runs than in its source.
    """
    from kd_bench.methods.base import Method

    info, location = describe(name), _locate(name, "")
    try:
        module = _run_file(location.path) if location.kind == "file" else importlib.import_module(str(location.module))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"method {name!r}: {info.path} cannot be imported: {reason}") from error
    found = getattr(module, info.class_name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name!r}: {info.class_name} in {info.path} is not a kd_bench.methods.base.Method")
    said = (info.family, info.needs_teacher, [parameter.name for parameter in info.parameters])
    if said != (found.family, found.needs_teacher, _keyword_only(found)):
        raise UserError(
            f"method {name!r}: family, needs_teacher and the arguments of __init__ are not what the source of "
            f"{info.class_name} says; write them in the class itself ({info.path})"
        )
    if bool(found.needs.teacher) != info.needs_teacher:
        raise UserError(
            f"method {name!r}: needs_teacher is {info.needs_teacher} and needs.teacher is "
            f"{sorted(found.needs.teacher)}; let {info.class_name} say the same in both ({info.path})"
        )
    return found


def build(name: str, pair: Pair, hyperparameters: Mapping[str, Any]) -> Method:
    """Makes a method for a pair.

    Args:
        name: The method.
        pair: What it is for.
        hyperparameters: As for ``check``, which they go through.

    Raises:
        UserError: As ``load`` and ``check``, and for a pair that has no teacher where the method needs one.
    """
    resolved, method = check(name, hyperparameters), load(name)
    if method.needs_teacher and pair.teacher is None:
        raise UserError(f"method {name!r} needs a teacher, and {pair.student_name} has none")
    return method(pair, **resolved)


def source_hash(name: str) -> str | None:
    """SHA-256 of a plug-in's file; None for a built-in method.

    Raises:
        UserError: If there is no such method.
    """
    location = _locate(name, "")
    return None if location.kind == "built-in" else hashlib.sha256(_read(location.path)).hexdigest()


def _built_in() -> set[str]:
    return {path.stem for path in _FOLDER.glob("*.py")} - _NO_METHODS


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _hint(key: str, known: list[str]) -> str:
    near = nearest(key, known)
    if near:
        return f"did you mean {near!r}?"
    return f"there are: {', '.join(known)}" if known else "it has none"


def _locate(name: str, where: str) -> _Location:
    if name in _built_in():
        return _Location(_FOLDER / f"{name}.py", None, f"{__package__}.{name}", "built-in")
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"{_prefix(where)}method {name!r}: there is no file {path}")
        return _Location(path.resolve(), class_name, None, "file")
    if name.endswith(".py"):
        raise UserError(f"{_prefix(where)}method {name!r}: the class is missing; write {name}:ClassName")
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise UserError(f"{_prefix(where)}method {name!r} is offered by more than one package: {', '.join(values)}")
    if not points:
        raise unknown("method", name, names(), where)
    return _locate_entry_point(points[0], where)


def _locate_entry_point(point: EntryPoint, where: str) -> _Location:
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
        raise UserError(
            f"{_prefix(where)}method {point.name!r}: its entry point {point.value!r} leads to no class in a Python file"
        )
    return _Location(Path(spec.origin), point.attr, point.module, "package")


def _class_source(name: str, location: _Location, where: str) -> ClassSource:
    classes = read_classes(location.path, where)
    if location.class_name is None:
        public = [one for one in classes.values() if not one.name.startswith("_")]
        if len(public) != 1:
            raise UserError(f"{_prefix(where)}method {name!r}: {location.path} should hold exactly one public class")
        return public[0]
    if not classes:
        raise UserError(f"{_prefix(where)}method {name!r}: {location.path} holds no class")
    if location.class_name not in classes:
        raise unknown(f"class of {location.path}", location.class_name, classes, where)
    return classes[location.class_name]


def _problem(source: ClassSource) -> str | None:
    """What in a class's source breaks the rules of ``Method``."""
    if not source.bases:
        return f"{source.name} is not a kd_bench.methods.base.Method"
    if not source.has_init:
        return f"{source.name} has no __init__ of its own, whose keyword-only arguments are the hyper-parameters"
    if source.positional != ("pair",):
        return f"__init__ should take 'self, pair, *' and then its hyper-parameters, not {', '.join(source.positional)}"
    for parameter in source.parameters:
        try:
            resolve(parameter.annotation)
        except ValueError as error:
            return f"the type of hyper-parameter {parameter.name!r}, {parameter.annotation or 'not given'}, {error}"
    if source.attributes.get("family", "logits") not in ("logits", "features", "baseline", "adversarial"):
        return f"family = {source.attributes['family']!r} should be 'logits', 'features', 'baseline' or 'adversarial'"
    if not isinstance(source.attributes.get("needs_teacher", True), bool):
        return f"needs_teacher = {source.attributes['needs_teacher']!r} should be true or false"
    return None


def _keyword_only(method: type[Method]) -> list[str]:
    parameters = inspect.signature(method.__init__).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


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
