"""The page's plots: learning curves, accuracy against cost, intervals of differences, changes by class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kd_bench.report import svg
from kd_bench.report.statistics import Difference, MeanAndStd

_WIDTH, _HEIGHT = 560.0, 340.0

#: Left edge of the methods' names, right of the plot, and the number of characters that fit.
_NAMES, _CHARACTERS = _WIDTH - 125, 18

#: Largest number of points of a curve. More would be closer together than pixels.
_POINTS = 140

#: Width of the plot of an interval in a row of a table.
_FOREST_WIDTH = 260.0


@dataclass(frozen=True)
class Mark:
    """A method in a plot.

    Attributes:
        label: Name of the method.
        index: Index of the method among the page's series, which determines the colour.
        attributes: Data attributes of the element, for the page's filters.
    """

    label: str
    index: int
    attributes: Mapping[str, str]

    def open(self) -> Markup:
        """Returns the start tag of the method's group."""
        data = Markup(" ").join(Markup('data-{}="{}"').format(key, value) for key, value in self.attributes.items())
        return Markup('<g class="mark {}" {}>').format(svg.series(self.index), data)


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot.

    Attributes:
        mark: The method.
        x, y: Its coordinates.
        hollow: Whether the method is incomplete or has another protocol.
        square: Whether the point is a square instead of a disc.
    """

    mark: Mark
    x: float
    y: MeanAndStd
    hollow: bool = False
    square: bool = False


def curves(title: str, lines: Sequence[tuple[Mark, Sequence[Sequence[float | None]]]]) -> Markup | None:
    """Plots mean test accuracy by epoch, with a band from the lowest to the highest trial.

    ``lines`` has for each method the accuracies by epoch in percent, one sequence a trial. A mean is over the trials
    that reach the epoch. Returns None if there is nothing to plot.
    """
    drawn = [(mark, bands) for mark, trials in lines if (bands := _bands(trials))]
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
        thinned = [band for index, band in enumerate(bands) if index % step == 0 or index == len(bands) - 1]
        pixels = [(x(epoch), *(min(max(y(v), y.end), y.start) for v in values)) for epoch, *values in thinned]
        upper, lower = [(e, top) for e, *_, top in pixels], [(e, bottom) for e, bottom, *_ in pixels]
        parts += [
            mark.open(),
            Markup("<title>{}: {} % after epoch {}</title>").format(mark.label, f"{bands[-1][2]:.2f}", bands[-1][0]),
            Markup('<path class="band" d="{}Z"/>').format(svg.path(upper + lower[::-1])),
            Markup('<path class="line" d="{}"/>').format(svg.path([(e, mean) for e, _, mean, _ in pixels])),
            _name(mark, pixels[-1][0], pixels[-1][2], height),
        ]
    return svg.figure(_WIDTH, _HEIGHT, f"Learning curves: {title}", *parts)


def _bands(trials: Sequence[Sequence[float | None]]) -> list[tuple[int, float, float, float]]:
    """Epoch from 1, lowest, mean and highest value over the trials that have a value."""
    bands = []
    for index in range(max(map(len, trials), default=0)):
        values = [value for trial in trials if index < len(trial) and (value := trial[index]) is not None]
        if values:
            bands.append((index + 1, min(values), statistics.fmean(values), max(values)))
    return bands


def scatter(
    title: str, points: Sequence[Point], x_title: str, y_title: str, logarithmic: bool = False
) -> Markup | None:
    """Plots one quantity against another, with the standard deviation of the second and the name of each point.

    If ``logarithmic``, the first axis is logarithmic if it spans more than a factor of 5. Returns None without points.
    """
    if not points:
        return None
    values = [point.x for point in points]
    log = logarithmic and max(values) > 5 * min(values) > 0
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else svg.padded(values, 0.1)
    ends = [point.y.mean + sign * (point.y.std or 0) for point in points for sign in (-1, 1)]
    x = svg.Scale(low if log else max(low, 0), high, 52, _NAMES, log)
    y = svg.Scale(*svg.padded(ends), _HEIGHT - 44, 12)
    heights = svg.spread_out([y(point.y.mean) for point in points], 13, y.end + 4, y.start - 4)
    parts = [svg.axes(x, y, x_title, y_title)]
    for point, height in zip(points, heights, strict=True):
        center_x, center_y, std = x(point.x), y(point.y.mean), point.y.std or 0.0
        style = "hollow" if point.hollow else "dot"
        if point.square:
            shape = Markup('<rect class="{}" x="{}" y="{}" width="9" height="9"/>')
            shape = shape.format(style, svg.px(center_x - 4.5), svg.px(center_y - 4.5))
        else:
            shape = Markup('<circle class="{}" cx="{}" cy="{}" r="5"/>')
            shape = shape.format(style, svg.px(center_x), svg.px(center_y))
        parts += [
            point.mark.open(),
            Markup("<title>{}: {} ± {}, at {}</title>").format(
                point.mark.label, f"{point.y.mean:.2f}", f"{std:.2f}", svg.short(round(point.x, 2))),
            Markup('<path class="line thin" d="{}"/>').format(
                svg.path([(center_x, y(point.y.mean - std)), (center_x, y(point.y.mean + std))])),
            shape,
            _name(point.mark, center_x + 6, center_y, height),
        ]  # fmt: skip
    return svg.figure(_WIDTH, _HEIGHT, title, *parts)


def _name(mark: Mark, x: float, y: float, height: float) -> Markup:
    """The method's name at the right edge, with a line from (x, y) to it, and the end tag of the method's group."""
    text = mark.label if len(mark.label) <= _CHARACTERS else f"{mark.label[: _CHARACTERS - 1]}…"
    return Markup('<path class="leader" d="{}"/><text class="name" x="{}" y="{}">{}</text></g>').format(
        svg.path([(x, y), (_NAMES + 10, height)]), svg.px(_NAMES + 13), svg.px(height + 4), text
    )


def forest_scale(differences: Sequence[Difference]) -> svg.Scale:
    """Returns one scale for all intervals of a pair. It contains zero."""
    ends = [end for value in differences for end in (value.mean, value.low, value.high) if end is not None]
    return svg.Scale(*svg.padded([0.0, *ends], 0.05), 8, _FOREST_WIDTH - 8)


def forest_axis(scale: svg.Scale) -> Markup:
    """Plots the axis above the intervals."""
    labels = Markup("").join(
        Markup('<text class="tick" x="{}" y="12" text-anchor="middle">{}</text>').format(
            svg.px(scale(value)), f"{value:+.6g}".replace("-", "−") if value else "0")
        for value in scale.ticks(4)
    )  # fmt: skip
    return svg.figure(_FOREST_WIDTH, 16, "axis of the differences in percentage points", labels)


def forest_row(mark: Mark, difference: Difference, scale: svg.Scale) -> Markup:
    """Plots one interval. The cell beside the plot has the numbers."""
    zero, mean = svg.px(scale(0)), svg.px(scale(difference.mean))
    bar = Markup("")
    if difference.low is not None and difference.high is not None:
        bar = Markup('<line class="line" x1="{}" x2="{}" y1="11" y2="11"/>').format(
            svg.px(scale(difference.low)), svg.px(scale(difference.high)))  # fmt: skip
    return Markup(
        '<svg viewBox="0 0 {} 22" class="forest" aria-hidden="true"><line class="zero" x1="{}" x2="{}" y1="0" y2="22"/>'
        '<g class="{}">{}<circle class="dot" cx="{}" cy="11" r="4"/></g></svg>'
    ).format(svg.px(_FOREST_WIDTH), zero, zero, svg.series(mark.index), bar, mean)


def classes(title: str, mark: Mark, changes: Sequence[float]) -> Markup:
    """Plots a bar for each class, sorted by its change in percentage points."""
    ordered = sorted(enumerate(changes), key=lambda item: item[1])
    height = 180.0
    x = svg.Scale(0, len(ordered), 52, _WIDTH - 12)
    y = svg.Scale(*svg.padded([0.0, *changes]), height - 14, 8)
    width = max((x.end - x.start) / len(ordered) - 0.6, 0.5)
    bar = '<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>class {}: {} points</title></rect>'
    bars = Markup("").join(
        Markup(bar).format(
            svg.px(x(index) + 0.3), svg.px(min(y(0), y(change))), svg.px(width), svg.px(abs(y(change) - y(0))), label,
            f"{change:+.2f}")
        for index, (label, change) in enumerate(ordered)
    )  # fmt: skip
    grid = svg.y_grid(x, y, 4)
    return svg.figure(_WIDTH, height, f"Changes by class: {title}", grid, mark.open(), bars, Markup("</g>"))
