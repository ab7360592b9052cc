"""Axes and marks as inline SVG. Colours are classes of the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

#: Series that the style sheet has colours for; more begin again, with dashes.
COLOURS = 12


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to pixels from ``start`` to ``end``, by their logarithm if ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values to label, about as many as wanted."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
            return [value for value in every if self.low <= value <= self.high]
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [at * step for at in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Ends of an axis that holds the values with some space around; never of no length."""
    low, high = min(values), max(values)
    space = (high - low) * share or max(abs(high) * 0.05, 0.5)
    return low - space, high + space


def series(index: int) -> str:
    """Classes of a series: its colour, and dashes where colours begin again."""
    return f"s{index % COLOURS}" + " dashed" * (index >= COLOURS)


def short(value: float) -> str:
    """A number without digits that say nothing, for axes."""
    return f"{value:.6g}"


def px(value: float) -> str:
    """A pixel, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Straight lines through the points, for ``d``."""
    return "M" + "L".join(f"{px(x)} {px(y)}" for x, y in points) if points else ""


def axes(x: Scale, y: Scale, x_title: str, y_title: str) -> Markup:
    """Grid lines, labels and titles of both axes."""
    lines = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
               'text-anchor="end">{}</text>').format(
            px(x.start), px(x.end), px(y(at)), px(y(at)), px(x.start - 6), px(y(at) + 4), short(at))
        for at in y.ticks()
    ]  # fmt: skip
    lines += [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
               'text-anchor="middle">{}</text>').format(
            px(x(at)), px(x(at)), px(y.start), px(y.end), px(x(at)), px(y.start + 16), short(at))
        for at in x.ticks()
    ]  # fmt: skip
    middle = (y.start + y.end) / 2
    lines.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text><text class="axis" x="12" y="{}" '
               'text-anchor="middle" transform="rotate(-90 12 {})">{}</text>').format(
            px((x.start + x.end) / 2), px(y.start + 34), x_title, px(middle), px(middle), y_title)
    )  # fmt: skip
    return Markup("").join(lines)


def figure(width: float, height: float, label: str, *content: Markup) -> Markup:
    """The whole picture, with what it shows in words for those who do not see it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        px(width), px(height), label, Markup("").join(content)
    )


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved apart so that neighbours are at least ``gap`` apart, in [low, high] as far as that goes."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    moved = list(places)
    previous = low - gap
    for at in order:
        moved[at] = previous = max(moved[at], previous + gap)
    following = high + gap
    for at in reversed(order):
        moved[at] = following = min(moved[at], following - gap)
    return moved


__all__ = ["COLOURS", "Scale", "axes", "escape", "figure", "padded", "path", "px", "series", "short", "spread_out"]
