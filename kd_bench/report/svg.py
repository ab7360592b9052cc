"""Axes and paths as inline SVG. Colours are classes of the style sheet, so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to pixels from ``start`` to ``end``, by their logarithm if ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the pixel of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, number: int = 5) -> list[float]:
        """Returns round values for labels, approximately ``number`` of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
            return [value for value in values if self.low <= value <= self.high]
        raw = (self.high - self.low) / number
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.08, least: float = 0.0) -> tuple[float, float]:
    """Returns the ends of an axis that contains the values with space around them. The ends are never equal.

    Args:
        values: The values.
        share: Space at each end, as a share of the values' range.
        least: Smallest range of the axis, so that differences that mean nothing do not fill it.
    """
    low, high = min(values), max(values)
    space = (high - low) * share or max(abs(high) * 0.05, 0.5)
    space = max(space, (least - (high - low)) / 2)
    return low - space, high + space


def short(value: float) -> str:
    """Returns a number with at most six digits."""
    return f"{value:.6g}"


def px(value: float) -> str:
    """Returns a pixel coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Returns straight lines through the points, for the attribute ``d``."""
    return "M" + "L".join(f"{px(x)} {px(y)}" for x, y in points) if points else ""


def y_grid(x: Scale, y: Scale, number: int = 5) -> Markup:
    """Returns horizontal grid lines with labels."""
    return Markup("").join(
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
               'text-anchor="end">{}</text>').format(
            px(x.start), px(x.end), px(y(value)), px(y(value)), px(x.start - 6), px(y(value) + 4), short(value))
        for value in y.ticks(number)
    )  # fmt: skip


def axes(x: Scale, y: Scale, x_title: str, y_title: str, whole: bool = False) -> Markup:
    """Returns grid lines, labels and titles of both axes. ``whole``: x has labels at whole numbers only."""
    x_grid = Markup("").join(
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
               'text-anchor="middle">{}</text>').format(
            px(x(value)), px(x(value)), px(y.start), px(y.end), px(x(value)), px(y.start + 16), short(value))
        for value in x.ticks()
        if not whole or value == round(value)
    )  # fmt: skip
    middle = px((y.start + y.end) / 2)
    titles = Markup(
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text><text class="axis" x="12" y="{}" '
        'text-anchor="middle" transform="rotate(-90 12 {})">{}</text>'
    ).format(px((x.start + x.end) / 2), px(y.start + 34), x_title, middle, middle, y_title)
    return y_grid(x, y) + x_grid + titles


def figure(width: float, height: float, label: str, *content: Markup) -> Markup:
    """Returns a whole figure, with a label for screen readers."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        px(width), px(height), label, Markup("").join(content)
    )


def spread_out(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns the positions moved apart to a distance of at least ``gap``, in [low, high] if there is enough space."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    previous = low - gap
    for index in order:
        moved[index] = previous = max(moved[index], previous + gap)
    following = high + gap
    for index in reversed(order):
        moved[index] = following = min(moved[index], following - gap)
    return moved
