"""The looks of methods are fixed, different, and readable on both backgrounds."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import pytest

from kd_bench.methods import _registry as methods
from kd_bench.report.palette import _METHODS, COLOURS, STROKES, looks


def test_no_two_built_in_methods_look_alike() -> None:
    names = methods._built_in() - {"none"}
    assert set(_METHODS) <= names, "a look is kept for a method that there is not"
    assert len(set(_METHODS)) == len(_METHODS) <= len(COLOURS) * STROKES
    assert len(set(looks(names).values())) == len(names)


def test_a_method_looks_the_same_on_every_page() -> None:
    alone, beside = looks(["reviewkd"]), looks(["mine", "kd", "reviewkd", "another"])
    assert alone["reviewkd"] == beside["reviewkd"] != beside["kd"]
    assert {look.classes for look in looks(["kd", "reviewkd"]).values()} == {"s0 t0", "s3 t0"}


def test_other_labels_follow_from_their_names_and_are_never_alike() -> None:
    mine = [f"kd T={temperature}" for temperature in range(10)]
    assert looks(mine) == looks(reversed(mine))
    assert len({look.colour for look in looks(["kd", "dkd", *mine[:8]]).values()}) == 10, "new colours come first"
    everything = [*_METHODS, *(f"plug-in {index}" for index in range(40 - len(_METHODS)))]
    assert len(set(looks(everything).values())) == 40
    assert len(looks([*everything, "one more", "\udc80"])) == 42


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read_and_told_apart(dark: bool) -> None:
    style = (resources.files("kd_bench.report") / "templates" / "report.css").read_text()
    back, fore = (re.findall(rf"--{name}: (#\w+);", style)[dark] for name in ("back", "fore"))
    back = "#" + "".join(2 * digit for digit in back[1:]) if len(back) == 4 else back
    colours = [pair[dark] for pair in COLOURS]
    assert all(_contrast(colour, back) >= 4.5 for colour in colours)
    distances = [_distance(*pair) for pair in itertools.combinations([*colours, fore], 2)]
    assert min(distances) > 0.15


def _linear(colour: str) -> list[float]:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def _contrast(first: str, second: str) -> float:
    """The contrast by WCAG."""
    first_luminance, second_luminance = (
        sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), _linear(c), strict=True)) for c in (first, second)
    )
    return (max(first_luminance, second_luminance) + 0.05) / (min(first_luminance, second_luminance) + 0.05)


def _distance(first: str, second: str) -> float:
    """The distance in OKLab."""
    return sum((value - other) ** 2 for value, other in zip(_oklab(first), _oklab(second), strict=True)) ** 0.5


def _oklab(colour: str) -> list[float]:
    to_lms = (
        (0.41222147, 0.53633254, 0.05144599),
        (0.2119035, 0.68069955, 0.10739696),
        (0.08830246, 0.28171884, 0.6299787),
    )
    to_lab = (
        (0.21045426, 0.79361779, -0.00407205),
        (1.9779985, -2.42859221, 0.45059371),
        (0.02590404, 0.78277177, -0.80867577),
    )
    lms = [sum(w * v for w, v in zip(row, _linear(colour), strict=True)) ** (1 / 3) for row in to_lms]
    return [sum(w * v for w, v in zip(row, lms, strict=True)) for row in to_lab]
