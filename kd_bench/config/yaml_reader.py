"""Reads YAML strictly: the scalars of YAML 1.2, no tags, no duplicate keys, and limits on everything.

PyYAML scans and parses the text; what the scalars mean is decided here. PyYAML itself follows YAML 1.1, in which 1:30
is 90, 010 is 8, ``no`` is false and 2020-12-24 is a date.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kd_bench.utils.errors import UserError

#: Largest number of characters of a text. Descriptions have a few hundred.
MAX_TEXT = 800

#: The largest file, in bytes. The largest recipe of this package has 3,000.
MAX_BYTES = 256 * 1024

#: The largest number of values, each use of an alias counted with everything in it.
MAX_VALUES = 20_000

#: The largest number of mappings and lists around a value.
MAX_DEPTH = 32

#: The largest number of characters of a key, which may be the path of a file.
MAX_KEY = 250

#: The largest number of characters of a number.
MAX_DIGITS = 30

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_BASES = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0+[0-9]")

_NOT_A_CONTINUATION = "this does not continue what is above; check the indentation and the quotation marks"

#: Beginnings of PyYAML's messages, and what to write instead.
_ADVICE = {
    "mapping values are not allowed here": "there is a second colon; put text with ': ' in quotes",
    "could not find expected ':'": "a colon and a space are missing after a key",
    "found character '\\t'": "there is a tab; write spaces instead",
    "found character '@'": "a text cannot begin with '@'; put it in quotes",
    "found character '`'": "a text cannot begin with '`'; put it in quotes",
    "found character '%'": "a text cannot begin with '%'; put it in quotes",
    "found unexpected end of stream": "a quotation mark is not closed",
    "found unexpected document separator": "a quotation mark is not closed",
    "found unknown escape character": "this is no escape sequence; write \\\\ for a backslash, or use single quotes",
    "expected ',' or ']'": "a comma or ] is missing",
    "expected ',' or '}'": "a comma or } is missing",
    "expected the node content": "a value is missing, or a bracket or comma is one too many",
    "expected <block end>": _NOT_A_CONTINUATION,
    "expected '<document start>'": _NOT_A_CONTINUATION,
    "sequence entries are not allowed here": "a list cannot begin here; begin it on a new line",
    "while scanning an anchor": "an anchor needs a name of letters and digits; put text with '&' in quotes",
    "while scanning an alias": "an alias needs a name of letters and digits; put text with '*' in quotes",
}


class YamlError(Exception):
    """A text that is not accepted: ``problem`` is the end of a sentence, ``line`` and ``column`` count from 1."""

    def __init__(self, problem: str, mark: Any = None, valid: bool = False) -> None:
        self.problem = problem
        position = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        if valid:
            self.sentence = f"{position}: {problem}" if position else problem
        else:
            self.sentence = f"is not valid YAML{f' at {position}' if position else ''}: {problem}"
        super().__init__(self.sentence)


@dataclass
class _Open:
    """A mapping or list whose end is not reached yet."""

    value: dict[str, Any] | list[Any]
    first: int  # number of values before it
    anchor: str | None
    key: str | None = None  # of the mapping's next value; None if a key is next
    lines: dict[str, int] = field(default_factory=dict)  # of the mapping's keys


def parse_yaml(text: str) -> Any:
    """Returns the value that a YAML text stands for; None for an empty text.

    Keys are always text, as they are written.

    Raises:
        YamlError: If the text is not valid YAML, or breaks one of the rules or limits of this module.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise YamlError(f"there are more than the {MAX_BYTES // 1024} KB that are allowed", valid=True)
    try:
        return _Builder().build(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character U+{error.character:04X} is not allowed; write it as an escape in double quotes"
        raise YamlError(f"{problem} (line {line})") from None
    except yaml.MarkedYAMLError as error:
        messages = [str(message) for message in (error.problem, error.context) if message]
        advice = next((_ADVICE[start] for text in messages for start in _ADVICE if text.startswith(start)), None)
        raise YamlError(advice or messages[0], error.problem_mark or error.context_mark) from None
    except (ValueError, OverflowError):  # the code of an escape sequence is larger than Unicode has
        raise YamlError("an escape sequence stands for no character") from None


class _Builder:
    """Builds values from the parser's events. Nothing here is recursive, so that depth costs no stack."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}  # value and number of values in it
        self._result: Any = None

    def build(self, text: str) -> Any:
        documents = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise YamlError("a second document begins; keep one per file", event.start_mark, valid=True)
            elif isinstance(event, yaml.AliasEvent):
                self._add_alias(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._add_scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
        return self._result

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        self._check_tag(event)
        self._count_values(1, event)
        if len(self._open) >= MAX_DEPTH:
            raise YamlError(f"this is nested more than {MAX_DEPTH} levels deep", event.start_mark, valid=True)
        self._refuse_as_key(event)
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(value, self._count - 1, event.anchor))

    def _end(self) -> None:
        done = self._open.pop()
        if done.anchor:
            self._anchors[done.anchor] = done.value, self._count - done.first
        self._add(done.value)

    def _add_alias(self, event: yaml.AliasEvent) -> None:
        name = event.anchor
        if any(parent.anchor == name for parent in self._open):
            raise YamlError(f"*{name} stands for a value that contains it", event.start_mark)
        if name not in self._anchors:
            raise YamlError(f"*{name} has no anchor &{name} above it; put text with '*' in quotes", event.start_mark)
        self._refuse_as_key(event)
        value, count = self._anchors[name]
        self._count_values(count, event)
        self._add(copy.deepcopy(value))

    def _add_scalar(self, event: yaml.ScalarEvent) -> None:
        self._check_tag(event)
        self._count_values(1, event)
        text = _text(event)
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._add_key(parent, text, event)
            return
        value = _plain_value(event) if event.style is None else text
        if isinstance(value, str) and len(value) > MAX_TEXT:
            problem = f"the text {value[:20]!r}... has {len(value)} characters; {MAX_TEXT} are allowed"
            raise YamlError(problem, event.start_mark, valid=True)
        if value is None and not text and parent is not None:
            subject = f"the value of {parent.key!r} is missing" if parent.key is not None else "a value is missing"
            raise YamlError(f"{subject}; write null to leave it out", event.start_mark, valid=True)
        if event.anchor:
            self._anchors[event.anchor] = value, 1
        self._add(value)

    def _add_key(self, parent: _Open, key: str, event: yaml.ScalarEvent) -> None:
        if key in parent.lines:
            raise YamlError(f"the key {key!r} is given twice, first in line {parent.lines[key]}", event.start_mark)
        if not key:
            raise YamlError("a key is missing before the colon", event.start_mark)
        if key == "<<" and event.style is None:
            raise YamlError("'<<' is not part of YAML 1.2; write the keys out, or use extends", event.start_mark)
        if len(key) > MAX_KEY:
            problem = f"the key {key[:20]!r}... has {len(key)} characters; {MAX_KEY} are allowed"
            raise YamlError(problem, event.start_mark, valid=True)
        parent.key, parent.lines[key] = key, event.start_mark.line + 1 if event.start_mark else 0

    def _add(self, value: Any) -> None:
        """Puts a value where it belongs."""
        if not self._open:
            self._result = value
            return
        parent = self._open[-1]
        if isinstance(parent.value, list):
            parent.value.append(value)
        else:
            assert parent.key is not None
            parent.value[parent.key] = value
            parent.key = None

    def _count_values(self, count: int, event: yaml.NodeEvent) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            problem = f"there are more than {MAX_VALUES} values, counting those that aliases repeat"
            raise YamlError(problem, event.start_mark, valid=True)

    def _refuse_as_key(self, event: yaml.NodeEvent) -> None:
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            raise YamlError("a key must be a word", event.start_mark)

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None:
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise YamlError(f"the tag {name} is not allowed; write the value without it", event.start_mark)


def _text(event: yaml.ScalarEvent) -> str:
    """Returns the text of a scalar. As in JSON, two escape sequences may stand for one character."""
    text: str = event.value
    try:
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise YamlError("an escape sequence stands for half a character", event.start_mark) from None


def _plain_value(event: yaml.ScalarEvent) -> Any:
    """Returns the value of a scalar without quotes.

    Raises:
        YamlError: If it is a number that is too long, or begins with a zero.
    """
    text = event.value
    if text in _NULL:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    whole, other = _INT.fullmatch(text), _OTHER_BASES.fullmatch(text)
    if not (whole or other or _FLOAT.fullmatch(text)):
        return text
    if len(text) > MAX_DIGITS:
        problem = f"this number has {len(text)} characters; {MAX_DIGITS} are allowed (text needs quotes)"
        raise YamlError(problem, event.start_mark, valid=True)
    if other:
        return int(text, 0)
    if _LEADING_ZERO.match(text):
        sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text.lstrip("+"))
        number = f"{sign}{digits.lstrip('0') or '0'}".replace("-.", "-0.")
        number = f"0{number}" if number.startswith(".") else number
        problem = f"{text} begins with a zero; write {number}, or {text!r} for text"
        raise YamlError(problem, event.start_mark, valid=True)
    return int(text) if whole else float(text)


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping. ``kind`` is what the file should be, for errors: "recipe".

    Raises:
        UserError: If the file cannot be read, is not YAML as ``parse_yaml`` accepts it, or holds no mapping.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        value = parse_yaml(content.decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: cannot be read: line {line} is not UTF-8 text") from None
    except YamlError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a {kind}: it should be a mapping of keys to values")
    return value
