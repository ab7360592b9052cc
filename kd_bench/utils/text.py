"""Words of sentences."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """Returns ``1 seed`` or ``2 seeds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_few(phrases: Sequence[str], most: int, separator: str) -> str:
    """Returns the first phrases, at most so many, and the number of those that are left out: ``a, b and 3 more``."""
    more = f" and {len(phrases) - most} more" if len(phrases) > most else ""
    return separator.join(phrases[:most]) + more
