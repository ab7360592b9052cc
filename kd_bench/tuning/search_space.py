"""The settings that a tuning searches, and their ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kd_bench.methods import _registry as methods
from kd_bench.methods.parameters import coerce, resolve, search_range
from kd_bench.utils.errors import UserError, unknown

#: Name of the learning rate, which is searched if it is asked for.
LEARNING_RATE = "lr"

_RANGE = re.compile(r"([^=]+)=([^=]+)\.\.([^=]+)")


@dataclass(frozen=True)
class SearchSpace:
    """The ranges by name, all on logarithmic scales, and the values from which a tuning starts.

    Attributes:
        ranges: Lowest and highest value of each hyper-parameter, and of ``lr``.
        start: The published values, which are the first ones to be tried.
    """

    ranges: dict[str, tuple[float, float]]
    start: dict[str, float]


def read_ranges(texts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Reads ranges that a user has written as ``NAME=LOW..HIGH``.

    Raises:
        UserError: If one is not of this form, or not a range of positive numbers, or two are for one name.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for text in texts:
        match = _RANGE.fullmatch(text.strip())
        if match is None:
            raise UserError(f"--search {text}: should be NAME=LOW..HIGH, e.g. alpha=1..16")
        try:
            low, high = float(match[2]), float(match[3])
        except ValueError:
            raise UserError(f"--search {text}: {match[2]} and {match[3]} should be numbers") from None
        if not 0 < low < high < math.inf:
            raise UserError(f"--search {text}: should be two positive numbers, the smaller one first")
        name = match[1].strip()
        if name in ranges:
            raise UserError(f"--search {text}: {name} has a range already; leave one of the two out")
        ranges[name] = (low, high)
    return ranges


def search_space(
    method: str, values: Mapping[str, Any], lr: float, ranges: Mapping[str, tuple[float, float]], context: str
) -> SearchSpace:
    """Returns what is searched for a method.

    Args:
        method: Name of the method.
        values: Its published hyper-parameters for the pair, all of them.
        lr: The learning rate.
        ranges: Ranges of the user, which replace those that the hyper-parameters' types name.
        context: The row, for error messages.

    Raises:
        UserError: If a name is unknown or its value is not a positive number, a range has values that its
            hyper-parameter does not allow, or nothing is left.
    """
    info = methods.describe(method, context)
    kinds = {parameter.name: resolve(parameter.annotation) for parameter in info.parameters}
    searchable = [name for name, value in values.items() if isinstance(value, float) and value > 0]
    for name, bounds in ranges.items():
        if name in values and name not in searchable:  # e.g. a number of epochs, a word, or a weight of 0
            raise UserError(
                f"--search {name}: {context} has {name} {values[name]!r}, and only positive numbers that need not be "
                f"whole can be searched; there are: {', '.join([*searchable, LEARNING_RATE])}"
            )
        if name != LEARNING_RATE and name not in searchable:
            raise unknown(
                f"number among the hyper-parameters of {method}", name, [*searchable, LEARNING_RATE], "--search"
            )
        for bound in bounds if name in searchable else ():
            try:
                coerce(kinds[name], bound)
            except ValueError as error:
                raise UserError(f"--search {name}: {error}") from None
    default_ranges = {name: search_range(kinds[name], values[name]) for name in searchable}
    chosen = {name: bounds for name, bounds in default_ranges.items() if bounds is not None} | dict(ranges)
    if not chosen:
        raise UserError(
            f"{context}: {info.name} has no hyper-parameter with a range to search; give a range for one of "
            f"{', '.join([*searchable, LEARNING_RATE])}, e.g. --search lr=0.01..0.2"
        )
    start = {name: lr if name == LEARNING_RATE else float(values[name]) for name in chosen}
    widened = {name: (min(low, start[name]), max(high, start[name])) for name, (low, high) in chosen.items()}
    return SearchSpace(widened, start)
