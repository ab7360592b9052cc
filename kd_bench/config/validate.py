"""Checks content against settings, with errors of one sentence. All of pydantic's messages are translated here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kd_bench.config.base import nested_models
from kd_bench.config.optimizer import SGD, StepSchedule
from kd_bench.utils.errors import UserError, nearest, one_line
from kd_bench.utils.regular_files import BadFile

Model = TypeVar("Model", bound=BaseModel)

#: Keys whose mapping is one of several kinds, selected by its ``name``, and the kind without a name.
DEFAULT_NAMES = {"optimizer": SGD().name, "schedule": StepSchedule().name}

#: What a value should be, by the type of pydantic's error, with the fields of its context.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "none_required": "null",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_not_found": "a mapping with a name",
    "tuple_type": "a list",
    "list_type": "a list",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
}

#: Parts of pydantic's locations that are not in the file.
_BRANCHES = ("[key]", "bool", "tuple[constrained-str, ...]")

#: What text should be, by the pattern that it does not match.
_PATTERNS = {
    "^[0-9a-f]{64}$": "a SHA-256 checksum: 64 digits from 0 to 9 and a to f",
    r"^https?://\S+$": "an address that begins with http:// or https://",
}


def parse(model: type[Model], content: Any, context: str) -> Model:
    """Validates ``content`` as a ``model``.

    Raises:
        UserError: If it is invalid; one sentence names file, key and value of the first error.
    """
    try:
        # As JSON, because strict validation of Python values refuses a list for a tuple.
        text = json.dumps(content, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):  # a key that is no text, half a character, a value within itself
        raise UserError(f"{context}: should be made of mappings, lists, text, numbers, true, false and null") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise UserError(one_line(f"{context}: {_sentence(model, error)}")) from None


def parse_kept(model: type[Model], content: dict[str, Any]) -> Model:
    """Validates the content of a JSON file that kd-bench has written as a ``model``.

    Raises:
        BadFile: If a key is missing or has an impossible value.
    """
    try:
        return model.model_validate(content)
    except ValidationError:
        try:
            return parse(model, content, "it has")  # the same once more, for a sentence in our words
        except UserError as error:
            raise BadFile(f"is damaged: {error}") from None


def question(value: str, choices: Iterable[str]) -> str:
    """Returns the end of a sentence that asks if the choice most similar to ``value`` was meant; "" if none is."""
    hint = nearest(value, choices)
    return f"; did you mean {hint!r}?" if hint else ""


def nested_key(model: type[BaseModel], key: str) -> str | None:
    """Returns the only dotted key of a model's nested mappings that ends in ``key``, e.g. "optimizer.lr" for "lr".

    None if there is no such key, if there are several, or if the model itself has a key of this name.
    """
    if key.casefold() in model.model_fields:
        return None
    matches = {dotted for dotted in _dotted_keys(model) if dotted.rpartition(".")[2] == key.casefold()}
    return matches.pop() if len(matches) == 1 else None


def _dotted_keys(model: type[BaseModel]) -> Iterator[str]:
    """Yields the keys of the mappings within a model's settings. Those within lists have no keys of this form."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) in (dict, tuple):
            continue
        for nested in nested_models(field.annotation):
            yield from (f"{name}.{inner}" for inner in (*nested.model_fields, *_dotted_keys(nested)))


def shortened(value: Any) -> str:
    """Returns a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    # Every branch of a union reports an error. The one with the longest location is the branch that was meant.
    errors = error.errors(include_url=False)
    details = max(errors, key=lambda details: (details["type"] == "extra_forbidden", len(details["loc"])))
    kind, value = details["type"], details["input"]
    location = _location(details)
    # pydantic also names the branch of a union (optimizer.sgd.lr), which is not in the file.
    keys = [part for parent, part in zip(["", *location], location, strict=False) if parent not in DEFAULT_NAMES]
    subject = f"{'.'.join(keys)}: " if keys else ""
    if kind == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        hint = nested_key(model, location[-1]) if len(location) == 1 else None
        near = f"; did you mean {hint!r}?" if hint else question(location[-1], fields)
        return f"{subject}no such key{near or '; there are: ' + ', '.join(fields)}"
    if kind == "missing":
        return f"{subject}this {'value' if location[-1].isdigit() else 'key'} is missing"
    if kind in {"union_tag_invalid", "literal_error"}:
        expected = str(details["ctx"].get("expected_tags") or details["ctx"].get("expected"))
        value = details["ctx"].get("tag", value)
        hint = question(str(value), re.findall(r"'([^']+)'", expected))
        return f"{subject}{shortened(value)} is none of {expected}{hint}"
    if kind == "value_error":  # raised by our own code
        message = details["msg"].removeprefix("Value error, ")
        return f"{subject}{message}" if isinstance(value, dict) else f"{subject}{message} (it is {shortened(value)})"
    branches = [other for other in errors if _location(other) == location]
    expected = " or ".join(dict.fromkeys(map(_expected, branches)))
    correction = _correction(kind, value)
    if kind == "tuple_type" and keys == ["seeds"] and "trials" in model.model_fields and type(value) is int:
        correction = f"; write trials: {value} for so many seeds, or seeds: [{value}] for this one"
    return f"{subject}should be {expected} (it is {shortened(value)}){correction}"


def _location(details: ErrorDetails) -> list[str]:
    parts = map(str, details["loc"])
    # pydantic also names the branches of unions
    return [part for part in parts if part not in _BRANCHES and not part.startswith(("constrained-", "function-"))]


def _expected(details: ErrorDetails) -> str:
    """Returns what the value of an error should be: "at least 1"."""
    context: Mapping[str, Any] = details.get("ctx") or {}
    match details["type"]:
        case "string_pattern_mismatch":
            return _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
        case "too_short" | "too_long" as kind:
            bound, number = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
            entries = "entry" if context[number] == 1 else "entries"
            return f"{bound} {context[number]} {entries} long"
        case kind:
            # Other types need a field of a type that settings do not have.
            return _EXPECTED.get(kind, "another value").format_map({key: _number(n) for key, n in context.items()})


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _correction(kind: str, value: Any) -> str:
    """Returns the end of a sentence that says how to write a number that is recognisable."""
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        digits = value.replace("_", "")
        if digits != value and re.fullmatch(r"[-+]?\d+(\.\d+)?", digits):
            return f"; write {digits}"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in {"yes", "on", "no", "off"}:
        return f"; write {'true' if value.lower() in {'yes', 'on'} else 'false'}"
    return ""


def _fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Returns the keys that the mapping at ``location`` may have."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        nested = [model for field in fields for model in nested_models(field.annotation)]
        named = (model for model in models if "name" in model.model_fields)
        tagged = [model for model in named if part in get_args(model.model_fields["name"].annotation)]
        models = nested or tagged or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
