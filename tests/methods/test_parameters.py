"""Types of hyper-parameters, and the normal form of their values."""

import doctest
import json
import math
from typing import Any

import pytest

from kd_bench.methods import parameters
from kd_bench.methods.parameters import allowed, coerce, resolve


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("float", 4, 4.0),
        ("float", -0.0, 0.0),
        ("NonNegative", 0, 0.0),
        ("Positive", 1e-9, 1e-9),
        ("Fraction", 1, 1.0),
        ("Count", 20.0, 20),
        ("Count", 0, 0),
        ("PositiveCount", 1, 1),
        ("int", -3, -3),
        ("bool", False, False),
        ("str", "a", "a"),
        ("Literal['sample', 'class']", "class", "class"),
        ("typing.Literal[1, True]", True, True),
        ("Literal['only']", "only", "only"),
        ("NonNegative | None", None, None),
        ("parameters.NonNegative | None", 2, 2.0),
        ("None | None", None, None),
    ],
)
def test_normal_form(annotation: str, value: Any, expected: Any) -> None:
    coerced = coerce(resolve(annotation), value)
    assert coerced == expected
    assert type(coerced) is type(expected)
    assert json.dumps(coerced) == json.dumps(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("NonNegative", -1, "-1 is not a finite number, at least 0"),
        ("Positive", 0, "0 is not a finite number, above 0"),
        ("Fraction", 1.5, "1.5 is not a finite number, from 0 to 1"),
        ("float", True, "True is not a finite number"),
        ("float", "4", "'4' is not a finite number"),
        ("float", math.nan, "nan is not a finite number"),
        ("float", -math.inf, "-inf is not a finite number"),
        ("float", 10**400, "is not a finite number"),
        ("float", None, "None is not a finite number"),
        ("Count", 2.5, "2.5 is not a whole number"),
        ("Count", -1, "-1 is not a whole number, at least 0"),
        ("Count", True, "True is not a whole number"),
        ("int", math.inf, "inf is not a whole number"),
        ("int", math.nan, "nan is not a whole number"),
        ("PositiveCount", 0, "0 is not a whole number, at least 1"),
        ("bool", 1, "1 is not true or false"),
        ("str", 1, "1 is not a text"),
        ("Literal['sample', 'class']", "klass", "'klass' is not 'sample' or 'class'"),
        ("Literal[1]", True, "True is not 1"),
        ("Literal[1]", [1], "is not 1"),
        ("Positive | None", -1, "-1 is not a finite number, above 0, or null"),
    ],
)
def test_values_that_are_not_allowed(annotation: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="is not") as caught:
        coerce(resolve(annotation), value)
    assert message in str(caught.value)


@pytest.mark.parametrize("annotation", ["list[int]", "Tensor", "Literal[x]", "__import__('os')", "1", "float |", ""])
def test_unknown_annotations(annotation: str) -> None:
    with pytest.raises(ValueError, match="should be one of float, int"):
        resolve(annotation)


def test_allowed_names_every_kind() -> None:
    assert allowed(resolve("Literal['a', 'b'] | None")) == "'a' or 'b', or null"
    assert allowed(resolve("bool")) == "true or false"


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(parameters)
    assert result.attempted > 0
    assert result.failed == 0
