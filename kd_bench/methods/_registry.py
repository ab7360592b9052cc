"""The methods by name: describes each without importing it, checks its hyper-parameters, and builds it.

A built-in method is named after its file in this folder (``ikl_kd``). A method of an installed package is named by its
entry point in the group ``kd_bench.methods``; built-in names win. Any other method is named
``path/to/file.py:ClassName``. All functions but ``load`` and ``build`` read source only: they import neither torch nor
a plug-in. ``context`` is where a name was written, for error messages.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.methods import _logit_settings
from kd_bench.methods.parameters import allowed, coerce, resolve
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, nearest, prefix
from kd_bench.utils.plugins import METHOD, Plugin
from kd_bench.utils.signatures import REQUIRED, Definition, NotLiteral, Parameter, read_classes

if TYPE_CHECKING:
    from kd_bench.config.trial import LogitSettings
    from kd_bench.methods.base import Family, Method
    from kd_bench.types import Needs, Pair

#: Attributes of ``Method`` that are false unless the class has them as a literal.
_SWITCHES = ("weighs_samples", "computes_logits", "keeps_layers", "uses_second_view")

_FOLDER = Path(__file__).parent
_NOT_METHODS = {"adversarial", "base", "parameters"}

#: Base classes without hyper-parameters. A class with other bases has an ``__init__`` of its own.
_BASES = {"Method", "AdversarialMethod", "ClassPrior"}


@dataclass(frozen=True)
class MethodInfo:
    """Description of a method, read from its source."""

    name: str
    class_name: str
    summary: str
    doc: str
    parameters: tuple[Parameter, ...]
    path: Path
    family: Family
    needs_teacher: bool
    required_settings: tuple[str, ...] = ()
    added_hyperparameters: tuple[str, ...] = ()
    weighs_samples: bool = False
    computes_logits: bool = False
    keeps_layers: bool = False
    uses_second_view: bool = False


def names() -> tuple[str, ...]:
    """Returns the names of the built-in methods and of those of installed packages, sorted."""
    return tuple(sorted(_built_in().union(plugins.entry_point_names(METHOD))))


def describe(name: str, context: str = "") -> MethodInfo:
    """Returns the description of a method without importing it.

    Raises:
        UserError: If there is no such method, or its source does not follow the rules of ``Method``.
    """
    plugin = _plugin(name, context)
    if plugin is None:
        return _describe_built_in(name)
    return _info(name, plugin.path, plugin.definition(context), context)


@cache  # because a recipe with all methods asks thousands of times
def _describe_built_in(name: str) -> MethodInfo:
    path = _FOLDER / f"{name}.py"
    public = [source for source in read_classes(path).values() if not source.name.startswith("_")]
    if len(public) != 1:
        raise UserError(f"method {name!r}: {path} should hold exactly one public class")
    return _info(name, path, public[0], "")


@cache
def _attributes_of_base() -> dict[str, Any]:
    return read_classes(_FOLDER / "base.py")["Method"].attributes


def _info(name: str, path: Path, source: Definition, context: str) -> MethodInfo:
    problem = _problem(source)
    if problem:
        raise UserError(f"{prefix(context)}method {name!r}: {problem} ({path})")
    attributes = _attributes_of_base() | source.attributes
    return MethodInfo(
        name=name,
        class_name=source.name,
        summary=source.summary,
        doc=source.doc,
        parameters=source.parameters,
        path=path,
        family=attributes["family"],
        needs_teacher=attributes["needs_teacher"],
        required_settings=attributes.get("required_settings", ()),
        added_hyperparameters=attributes["added_hyperparameters"],
        **{name: attributes[name] for name in _SWITCHES},
    )


def describe_row(label: str, name: str, context: str = "") -> MethodInfo:
    """Returns the description of the method of a recipe's row. Arguments and errors are those of ``describe``."""
    try:
        return describe(name, context)
    except UserError as error:
        if label != name or name in names():
            raise
        raise UserError(f"{error} (for a label of your own add method: NAME)") from None


def check(name: str, hyperparameters: Mapping[str, Any], context: str = "") -> dict[str, Any]:
    """Returns all hyper-parameters of a method in the order of its signature, each in the canonical form of its type.

    Args:
        name: Name of the method.
        hyperparameters: Values that differ from the defaults.
        context: Where they were written, for error messages.

    Raises:
        UserError: If a name is unknown, or a value has the wrong type, is out of range, or is missing.
    """
    info, subject = describe(name, context), f"{prefix(context)}{name}"
    names = [parameter.name for parameter in info.parameters]
    for key in hyperparameters:
        if key not in names:
            near = nearest(str(key), [*names, *_logit_settings.combinable(info)])
            choices = f"there are: {', '.join(names)}" if names else "it has none"
            hint = f"did you mean {near!r}?" if near else choices
            raise UserError(f"{subject} has no hyper-parameter {key!r}; {hint}")
    resolved = {}
    for parameter in info.parameters:
        value = hyperparameters.get(parameter.name, parameter.default)
        kind = resolve(parameter.annotation)
        if value is REQUIRED:
            raise UserError(f"{subject} needs a value for {parameter.name!r}: {allowed(kind)}")
        try:
            resolved[parameter.name] = coerce(kind, value)
        except ValueError:
            raise UserError(f"{subject}: {parameter.name} = {value!r} should be {allowed(kind)}") from None
    return resolved


def split_row(name: str, values: Mapping[str, Any], context: str = "") -> tuple[dict[str, Any], LogitSettings]:
    """Returns the hyper-parameters among the values of a row, which are not checked, and its logit settings.

    Args:
        name: Name of the method.
        values: The row's values by key.
        context: Where they were written, for error messages.

    Raises:
        UserError: If a logit setting has an invalid value, or cannot be combined with the method.
    """
    info = describe(name, context)
    parameters = [parameter.name for parameter in info.parameters]
    return _logit_settings.split(name, info, parameters, values, map(describe, sorted(_built_in())), context)


def settings(name: str, hyperparameters: Mapping[str, Any], context: str = "") -> dict[str, Any]:
    """Returns a method's hyper-parameters as a trial's settings have them: those of ``check`` without added defaults.

    Arguments and errors are those of ``check``; see ``Method.added_hyperparameters``.
    """
    info = describe(name, context)
    defaults = {
        parameter.name: parameter.default
        for parameter in info.parameters
        if parameter.name in info.added_hyperparameters
    }
    resolved = check(name, hyperparameters, context)
    return {key: value for key, value in resolved.items() if key not in defaults or value != defaults[key]}


def needs(name: str, hyperparameters: Mapping[str, Any]) -> Needs:
    """Returns what a method with these hyper-parameters reads, in its preparation and afterwards.

    Arguments and errors are those of ``build``.
    """
    from kd_bench.types import Needs

    method, resolved = load(name), check(name, hyperparameters)
    with _plugin_errors(name):
        needs: object = method.all_needs_with(resolved)
    if not isinstance(needs, Needs):
        raise _error(name, f"needs_with should return what kd_bench.types.Needs returns (it returns {needs!r:.60})")
    return needs


def load(name: str) -> type[Method]:
    """Imports the class of a method; this imports torch and runs the code of a plug-in.

    Raises:
        UserError: As ``describe``; also if a plug-in cannot be imported, is not a ``Method``, lacks a function or has
            one with other arguments, or differs at run time from its source.
    """
    from kd_bench.methods._class_rules import class_problem
    from kd_bench.methods.base import Method

    info, plugin = describe(name), _plugin(name)
    method = plugin.load() if plugin else getattr(importlib.import_module(f"{__package__}.{name}"), info.class_name)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method {name!r}: {info.class_name} in {info.path} is not a kd_bench.methods.base.Method")
    parameters = [parameter.name for parameter in info.parameters]
    switches = [getattr(info, name) for name in _SWITCHES]
    in_source = (info.family, info.needs_teacher, info.required_settings, *switches, parameters)
    arguments = inspect.signature(method.__init__).parameters.values()
    keyword_only = [argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]
    required = getattr(method, "required_settings", ())  # only methods of adversarial training have them
    switches = [getattr(method, name) for name in _SWITCHES]
    if in_source != (method.family, method.needs_teacher, required, *switches, keyword_only):
        raise _error(
            name,
            f"family, needs_teacher, required_settings, {', '.join(_SWITCHES)} and the arguments of __init__ are not "
            f"what the source of {info.class_name} says; write them in the class itself",
        )
    with _plugin_errors(name):
        problem = class_problem(method, parameters)
        if (
            problem is None
            and bool(method.needs.teacher or method.needs_in_preparation().teacher) != info.needs_teacher
        ):
            problem = (
                f"needs_teacher is {info.needs_teacher} and needs.teacher is {sorted(method.needs.teacher)}; let "
                f"{info.class_name} say the same in both"
            )
    if problem is not None:
        raise _error(name, problem)
    return method


@contextmanager
def _plugin_errors(name: str) -> Iterator[None]:
    """Inside, code of a method runs. Errors of a plug-in become a sentence; others are raised as they are."""
    plugin = _plugin(name)
    if plugin is None:
        yield
        return
    with plugins.one_sentence(f"method {name!r}: {plugin.attribute} in {plugin.path} failed", UserError):
        yield


def _error(name: str, problem: str) -> UserError:
    """Returns the error for a method whose class or instance breaks a rule."""
    return UserError(f"method {name!r}: {problem} ({describe(name).path})")


def build(
    name: str, pair: Pair, hyperparameters: Mapping[str, Any], logit_settings: LogitSettings | None = None
) -> Method:
    """Builds a method for a pair.

    Args:
        name: Name of the method.
        pair: The pair.
        hyperparameters: As for ``check``.
        logit_settings: As ``split_row`` returns them; None if none is switched on.

    Raises:
        UserError: As ``load`` and ``check``; also if the method needs a teacher and the pair has none, or if a plug-in
            raises any error.
    """
    from kd_bench.methods._class_rules import construct, instance_problem

    resolved, method = check(name, hyperparameters), load(name)
    if method.needs_teacher and pair.teacher is None:
        raise UserError(f"method {name!r} needs a teacher, and {pair.student_name} has none")
    with _plugin_errors(name):
        built = construct(method, pair, resolved)
        problem = instance_problem(built)
    if problem is not None:
        raise _error(name, problem)
    if (built.inference_head is not None) != method.keeps_layers:
        problem = "sets an inference_head" if built.inference_head is not None else "sets no inference_head"
        raise UserError(f"method {name!r}: keeps_layers is {method.keeps_layers}, and __init__ {problem}")
    if logit_settings is not None:
        _logit_settings.apply(built, logit_settings)
    return built


def source_hash(name: str) -> str | None:
    """Returns the SHA-256 of a plug-in's file; None for a built-in method."""
    plugin = _plugin(name)
    return plugin.hash() if plugin else None


@cache
def _built_in() -> frozenset[str]:
    return frozenset(path.stem for path in _FOLDER.glob("[!_]*.py")) - _NOT_METHODS


def _plugin(name: str, context: str = "") -> Plugin | None:
    """Returns the plug-in of a name; None for a built-in method."""
    built_in = _built_in()
    return None if name in built_in else plugins.find(METHOD, name, built_in, context)


def _problem(source: Definition) -> str | None:
    """Returns how the source of a class breaks the rules of ``Method``; None if it does not."""
    if not source.bases:
        return f"{source.name} is not a kd_bench.methods.base.Method"
    if not source.has_init and not set(source.bases) <= _BASES:
        return (
            f"{source.name} has no __init__ of its own, and {source.bases[0]} may have hyper-parameters; write an "
            "__init__ whose keyword-only arguments are the hyper-parameters"
        )
    if source.has_init and source.positional != ("pair",):
        return f"__init__ should take 'self, pair, *' and then its hyper-parameters, not {', '.join(source.positional)}"
    for parameter in source.parameters:
        if isinstance(parameter.default, NotLiteral):
            return (
                f"the default of {parameter.name!r} should be a literal (a number, a text, true or false), "
                f"not {parameter.default.text} as in line {parameter.default.line}"
            )
        try:
            resolve(parameter.annotation)
        except ValueError as error:
            return f"the type of hyper-parameter {parameter.name!r}, {parameter.annotation or 'not given'}, {error}"
    if source.attributes.get("family", "logits") not in ("logits", "features", "baseline", "adversarial"):
        return f"family = {source.attributes['family']!r} should be 'logits', 'features', 'baseline' or 'adversarial'"
    with_defaults = [parameter.name for parameter in source.parameters if parameter.default is not REQUIRED]
    added = source.attributes.get("added_hyperparameters", ())
    if not (isinstance(added, tuple) and all(name in with_defaults for name in added)):
        return f"added_hyperparameters = {added!r} should be a tuple of names of hyper-parameters with defaults"
    for key in ("needs_teacher", *_SWITCHES):
        if not isinstance(source.attributes.get(key, True), bool):
            return f"{key} = {source.attributes[key]!r} should be true or false"
    required = source.attributes.get("required_settings", ())
    if not (isinstance(required, tuple) and all(isinstance(key, str) for key in required)):
        return f"required_settings = {required!r} should be a tuple of names of settings of adversarial"
    return None
