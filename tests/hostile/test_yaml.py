"""YAML that other readers take for something else, or never finish with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.config.yaml_reader import MAX_BYTES, YamlError, parse_yaml, read_mapping
from kd_bench.utils.errors import UserError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{previous}'] * 9)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2020-12-24", "2020-12-24"),
        ("2020-99-99", "2020-99-99"),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("0", 0),
        ("-0.0", 0.0),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("Null", None),
        ("~", None),
        ("", None),
        ("-.Inf", float("-inf")),
        ("'1'", "1"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("=", "="),
        ("{1: 2, true: 3, null: 4, 1.0: 5}", {"1": 2, "true": 3, "null": 4, "1.0": 5}),
        ("[&x {a: 1}, *x]", [{"a": 1}, {"a": 1}]),
        ("# nothing\n", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_read_so_that_settings_can_refuse_it() -> None:
    assert math.isnan(parse_yaml(".NaN"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 010", "line 1, column 4: 010 begins with a zero; write 10, or '010' for text"),
        ("a: -00.5", "line 1, column 4: -00.5 begins with a zero; write -0.5, or '-00.5' for text"),
        ("a: !!int abc", "is not valid YAML at line 1, column 4: the tag !!int is not allowed"),
        ("a: !!timestamp 2020-99-99", "the tag !!timestamp is not allowed; write the value without it"),
        ("a: !!python/object/apply:os.system [echo hi]", "the tag !!python/object/apply:os.system is not allowed"),
        ("!!set {a, b}", "the tag !!set is not allowed"),
        ("a: !mine 1", "the tag !mine is not allowed"),
        ("a: &x [1, *x]", "is not valid YAML at line 1, column 11: *x stands for a value that contains it"),
        ("a: &x {b: *x}", "*x stands for a value that contains it"),
        ("a: *x", "*x has no anchor &x above it"),
        (BOMB, "there are more than 20000 values, counting those that aliases repeat"),
        (f"a: {'1' * 5000}", "line 1, column 4: this number has 5000 characters; 30 are allowed"),
        (f"a: {'1' * 5000}.5", "this number has 5002 characters"),
        (f"{'n' * 300}: 1", "the key 'nnnnnnnnnnnnnnnnnnnn'... has 300 characters; 250 are allowed"),
        ("a: 1\nb: 2\na: 3", "is not valid YAML at line 3, column 1: the key 'a' is given twice, first in line 1"),
        ("{a: 1, 'a': 2}", "the key 'a' is given twice"),
        ("<<: {a: 1}", "'<<' is not part of YAML 1.2; write the keys out, or use extends"),
        ("a:\n\tb: 1", "is not valid YAML at line 2, column 1: there is a tab; write spaces instead"),
        ("a: b: c", "is not valid YAML at line 1, column 5: there is a second colon; put text with ': ' in quotes"),
        ("a: 'b", "a quotation mark is not closed"),
        ("a: [1, 2", "is not valid YAML at line 1, column 9: a comma or ] is missing"),
        ("a: [1,", "a value is missing, or a bracket or comma is one too many"),
        ("a: [b}", "is not valid YAML at line 1, column 6: a comma or ] is missing"),
        ("a: 1\n- b", "is not valid YAML at line 2, column 1: this does not continue what is above"),
        ("a: - b", "a list cannot begin here; begin it on a new line"),
        ("a: @b", "a text cannot begin with '@'; put it in quotes"),
        ("a: %b", "a text cannot begin with '%'; put it in quotes"),
        ('a: "\\q"', "this is no escape sequence"),
        ('a: "\\ud83d"', "an escape sequence stands for half a character"),
        ('a: "\\UFFFFFFFF"', "an escape sequence stands for no character"),
        ("a: \x00", "the character U+0000 is not allowed"),
        ("a:", "line 1, column 3: the value of 'a' is missing; write null to leave it out"),
        ("{a: , b: 1}", "the value of 'a' is missing"),
        ("- ", "a value is missing; write null to leave it out"),
        ('"": 1', "a key is missing before the colon"),
        ("? [a]\n: 1", "a key must be a word"),
        ("a: 1\n---\nb: 2", "line 2, column 1: a second document begins; keep one per file"),
        ("[" * 100_000, "line 1, column 33: this is nested more than 32 levels deep"),
        ("{a: " * 50_000, "this is nested more than 32 levels deep"),
        ("\n".join(f"k{number}: 1" for number in range(15_000)), "there are more than 20000 values"),
        ("# " + "x" * MAX_BYTES, "there are more than the 256 KB that are allowed"),
    ],
)
def test_other_texts_are_refused_with_place_and_advice(text: str, sentence: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_is_a_copy() -> None:
    value = parse_yaml("a: &x {b: [1]}\nc: *x\n")
    value["a"]["b"].append(2)
    assert value["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfea", "cannot be read: line 1 is not UTF-8 text"),
        (b"a: 1\nb: \xe9\n", "cannot be read: line 2 is not UTF-8 text"),
        (b"x" * (2 * MAX_BYTES), "there are more than the 256 KB that are allowed"),
        (b"\xef\xbb\xbf- a\n", "is not a recipe: it should be a mapping of keys to values"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_mapping(path, "recipe")
    assert str(caught.value) == f"{path}: {sentence}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
#: Pieces of YAML, so that texts are almost YAML.
PIECES = st.sampled_from(
    [
        *":-?[]{},&*!|>'\"%@`#\n \tab10.e",
        *(
            "- ",
            ": ",
            "\n  ",
            "&a ",
            "*a",
            "!!int ",
            "---\n",
            "<<",
            "...",
            "true",
            "null",
            "\\x",
            "é",
            "\ufeff",
            "\x00",
        ),
        *("\x85", "\u2028", "\ud800", "%YAML 1.1\n", "? ", "|2\n"),
    ]
)


def _check_json(value: Any) -> None:
    """JSON is YAML."""
    assert parse_yaml(json.dumps(value)) == value


def _check_pieces(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        value = parse_yaml(text)
    except YamlError as error:
        assert "\n" not in str(error)
        return
    json.dumps(value)
    assert parse_yaml(text) == value or "nan" in text.lower()


@settings(max_examples=100)
@given(JSON)
def test_json_is_read_as_it_is(value: Any) -> None:
    _check_json(value)


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=30))
def test_any_text_is_read_or_refused(pieces: list[str]) -> None:
    _check_pieces(pieces)


@pytest.mark.slow
@settings(max_examples=1000)
@given(JSON, st.lists(PIECES, max_size=40))
def test_a_thousand_texts(value: Any, pieces: list[str]) -> None:
    _check_json(value)
    _check_pieces(pieces)
