"""The page's pictures: learning curves, accuracy against cost, intervals of differences, changes by class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kd_bench.report import svg
from kd_bench.report.statistics import Difference, MeanAndStd

_WIDTH, _HEIGHT = 560.0, 340.0

#: Where the names of the methods begin, right of what is drawn, and how much of one fits.
_NAMES, _LETTERS = _WIDTH - 125, 18

#: Points of a curve; more are closer together than pixels.
_POINTS = 140


@dataclass(frozen=True)
class Mark:
    """A method in a picture.

    Attributes:
        label: Its name.
        index: Its place among the page's series, which gives the colour.
        attributes: Of the element, so that the page can filter.
    """

    label: str
    index: int
    attributes: Mapping[str, str]

    def opened(self) -> Markup:
        """The group that holds what belongs to it."""
        data = Markup(" ").join(Markup('data-{}="{}"').format(key, value) for key, value in self.attributes.items())
        return Markup('<g class="mark {}" {}>').format(svg.series(self.index), data)


def curves(title: str, lines: Sequence[tuple[Mark, Sequence[Sequence[float | None]]]]) -> Markup | None:
    """Mean test accuracy by epoch, with a band from the lowest to the highest trial.

    Args:
        title: Of what.
        lines: Of each method the accuracies by epoch in percent, a sequence a trial; means are over as many trials as
            reach an epoch.

    Returns:
        None where there is nothing to draw.
    """
    drawn = [(mark, _bands(trials)) for mark, trials in lines]
    drawn = [(mark, bands) for mark, bands in drawn if bands]
    if not drawn:
        return None
    last = max(epoch for _, bands in drawn for epoch, *_ in bands)
    # the first epochs would take most of the height
    shown = [v for _, bands in drawn for e, *values in bands if e > last * 0.15 or len(bands) < 3 for v in values]
    low, high = svg.padded(shown or [v for _, bands in drawn for _, *values in bands for v in values], 0.04)
    x = svg.Scale(min(1, last - 1), last, 52, _NAMES)
    y = svg.Scale(max(low, 0), min(high, 100), _HEIGHT - 44, 12)
    parts = [svg.axes(x, y, "epoch", "top-1 on the test set, %")]
    heights = svg.spread_out([y(max(bands[-1][2], y.low)) for _, bands in drawn], 13, y.end + 4, y.start - 4)
    for (mark, bands), height in zip(drawn, heights, strict=True):
        step = math.ceil(len(bands) / _POINTS)
        kept = [band for at, band in enumerate(bands) if at % step == 0 or at == len(bands) - 1]
        inside = [(x(e), *(min(max(y(v), y.end), y.start) for v in values)) for e, *values in kept]
        mean = svg.path([(e, middle) for e, _, middle, _ in inside])
        band = svg.path([(e, top) for e, *_, top in inside] + [(e, bottom) for e, bottom, *_ in reversed(inside)])
        parts += [
            mark.opened(),
            Markup("<title>{}: {} % after epoch {}</title>").format(mark.label, f"{bands[-1][2]:.2f}", bands[-1][0]),
            Markup('<path class="band" d="{}Z"/>').format(band) if band else Markup(""),
            Markup('<path class="line" d="{}"/>').format(mean),
            _name(mark, inside[-1][0], inside[-1][2], height),
        ]
    return svg.figure(_WIDTH, _HEIGHT, f"Learning curves: {title}", *parts)


def _bands(trials: Sequence[Sequence[float | None]]) -> list[tuple[int, float, float, float]]:
    """Epoch from 1, lowest, mean and highest value over the trials that have one."""
    found = []
    for at in range(max(map(len, trials), default=0)):
        values = [value for one in trials if at < len(one) and (value := one[at]) is not None]
        if values:
            found.append((at + 1, min(values), statistics.fmean(values), max(values)))
    return found


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot; hollow where trials are lacking, square for one of two kinds of methods."""

    mark: Mark
    x: float
    y: MeanAndStd
    hollow: bool = False
    square: bool = False


def scatter(
    title: str, points: Sequence[Point], x_title: str, y_title: str, logarithmic: bool = False
) -> Markup | None:
    """One quantity against another, with the spread of the second, named at each point; None for nothing to draw.

    Args:
        title: Of what.
        points: The methods.
        x_title, y_title: Of the axes.
        logarithmic: Whether the first axis may be so, where it spans more than a factor of 5.
    """
    if not points:
        return None
    values = [point.x for point in points]
    log = logarithmic and max(values) > 5 * min(values) > 0
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else svg.padded(values, 0.1)
    spreads = [point.y.mean + sign * (point.y.std or 0) for point in points for sign in (-1, 1)]
    x = svg.Scale(low if log else max(low, 0), high, 52, _NAMES, log)
    y = svg.Scale(*svg.padded(spreads), _HEIGHT - 44, 12)
    heights = svg.spread_out([y(point.y.mean) for point in points], 13, y.end + 4, y.start - 4)
    parts = [svg.axes(x, y, x_title, y_title)]
    for point, height in zip(points, heights, strict=True):
        at, up, std = x(point.x), y(point.y.mean), point.y.std or 0.0
        shape = (
            Markup('<rect class="{}" x="{}" y="{}" width="9" height="9"/>').format(
                "hollow" if point.hollow else "dot", svg.px(at - 4.5), svg.px(up - 4.5))
            if point.square
            else Markup('<circle class="{}" cx="{}" cy="{}" r="5"/>').format(
                "hollow" if point.hollow else "dot", svg.px(at), svg.px(up))
        )  # fmt: skip
        said = f"{point.mark.label}: {point.y.mean:.2f} ± {std:.2f}, at {svg.short(round(point.x, 2))}"
        parts += [
            point.mark.opened(),
            Markup("<title>{}</title>").format(said),
            Markup('<path class="line thin" d="{}"/>').format(
                svg.path([(at, y(point.y.mean - std)), (at, y(point.y.mean + std))])),
            shape,
            _name(point.mark, at + 6, up, height),
        ]  # fmt: skip
    return svg.figure(_WIDTH, _HEIGHT, title, *parts)


def _name(mark: Mark, x: float, y: float, height: float) -> Markup:
    """The method's name at the right edge, with a line to it from its place; ends the group of the mark."""
    text = mark.label if len(mark.label) <= _LETTERS else f"{mark.label[: _LETTERS - 1]}…"
    return Markup('<path class="leader" d="{}"/><text class="name" x="{}" y="{}">{}</text></g>').format(
        svg.path([(x, y), (_NAMES + 10, height)]), svg.px(_NAMES + 13), svg.px(height + 4), text
    )


#: Width of an interval's picture, of which one stands in each row of a table.
FOREST = 260.0


def forest_scale(differences: Sequence[Difference]) -> svg.Scale:
    """One axis for all intervals of a pair; zero is always on it."""
    ends = [end for one in differences for end in (one.mean, one.low, one.high) if end is not None]
    # a method that fails utterly would press all others together
    low, high = svg.padded([0.0, *ends], 0.05)
    return svg.Scale(low, high, 8, FOREST - 8)


def forest_axis(scale: svg.Scale) -> Markup:
    """The axis above the intervals."""
    labels = Markup("").join(
        Markup('<text class="tick" x="{}" y="12" text-anchor="middle">{}</text>').format(
            svg.px(scale(at)), f"{at:+.6g}".replace("-", "−") if at else "0")
        for at in scale.ticks(4)
    )  # fmt: skip
    return svg.figure(FOREST, 16, "axis of the differences in percentage points", labels)


def forest_row(mark: Mark, one: Difference, scale: svg.Scale) -> Markup:
    """One interval; the cell beside it has the numbers."""
    zero, at = svg.px(scale(0)), svg.px(scale(one.mean))
    bar = Markup("")
    if one.low is not None and one.high is not None:
        bar = Markup('<line class="line" x1="{}" x2="{}" y1="11" y2="11"/>').format(
            svg.px(scale(one.low)), svg.px(scale(one.high)))  # fmt: skip
    return Markup(
        '<svg viewBox="0 0 {} 22" class="forest" aria-hidden="true"><line class="zero" x1="{}" x2="{}" y1="0" y2="22"/>'
        '<g class="{}">{}<circle class="dot" cx="{}" cy="11" r="4"/></g></svg>'
    ).format(svg.px(FOREST), zero, zero, svg.series(mark.index), bar, at)


def classes(title: str, mark: Mark, changes: Sequence[float]) -> Markup:
    """A bar a class, by the size of its change in percentage points."""
    ordered = sorted(enumerate(changes), key=lambda item: item[1])
    width, height = _WIDTH, 180.0
    x = svg.Scale(0, len(ordered), 52, width - 12)
    y = svg.Scale(*svg.padded([0.0, *changes]), height - 14, 8)
    bar = '<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>class {}: {} points</title></rect>'
    bars = Markup("").join(
        Markup(bar).format(
            svg.px(x(at) + 0.3), svg.px(min(y(0), y(value))), svg.px(max((x.end - x.start) / len(ordered) - 0.6, 0.5)),
            svg.px(abs(y(value) - y(0))), place, f"{value:+.2f}")
        for at, (place, value) in enumerate(ordered)
    )  # fmt: skip
    ticks = Markup("").join(
        Markup('<line class="grid" x1="52" x2="{}" y1="{}" y2="{}"/><text class="tick" x="46" y="{}" '
               'text-anchor="end">{}</text>').format(
            svg.px(x.end), svg.px(y(at)), svg.px(y(at)), svg.px(y(at) + 4), svg.short(at))
        for at in y.ticks(4)
    )  # fmt: skip
    return svg.figure(width, height, f"Changes by class: {title}", ticks, mark.opened(), bars, Markup("</g>"))
