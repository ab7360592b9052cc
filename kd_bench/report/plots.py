"""The page's plots: learning curves, accuracy against cost, and intervals of differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kd_bench.report import palette, svg
from kd_bench.report.palette import Look
from kd_bench.report.statistics import Difference, MeanAndStd

_WIDTH = 560.0

#: Left edge of the methods' names, right of the plot, and the number of characters that fit.
_NAMES, _CHARACTERS = _WIDTH - 125, 18

#: Distance of the methods' names.
_LINE = 13.0

#: Largest number of points of a curve. More would be closer together than pixels.
_POINTS = 140

#: Width of the plot of an interval in a row of a table.
_FOREST_WIDTH = 260.0

#: Smallest range of an axis of accuracies, in percentage points.
LEAST_POINTS = 1.0

#: Smallest range of an axis of costs, as a share of the largest cost.
_LEAST_COSTS = 0.1

#: Ratio of the largest to the smallest cost or loss from which on the axis is logarithmic.
_LOG_FROM = 5

_TOP1 = "top-1 on the test set, %"


@dataclass(frozen=True)
class Mark:
    """A method, or the student alone, in a plot.

    Attributes:
        label: Its name.
        look: Its colour and stroke.
        attributes: Data attributes of the element, for the page's filters.
    """

    label: str
    look: Look
    attributes: Mapping[str, str]

    def open(self) -> Markup:
        """Returns the start tag of the method's group."""
        data = Markup("").join(Markup(' data-{}="{}"').format(key, value) for key, value in self.attributes.items())
        return Markup('<g class="mark {}"{}>').format(self.look.classes, data)


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


#: Values by epoch of a method, one sequence a trial.
Lines = Sequence[tuple[Mark, Sequence[Sequence[float | None]]]]


def curves(title: str, lines: Lines, teacher: float | None = None) -> Markup | None:
    """Plots mean test accuracy by epoch, with a band from the lowest to the highest trial.

    A mean is over the trials that reach the epoch. Returns None if there is nothing to plot.

    Args:
        title: Of the plot.
        lines: Accuracies in percent.
        teacher: The teacher's accuracy in percent, drawn as a horizontal line; None for no line.
    """
    drawn = [(mark, bands) for mark, trials in lines if (bands := bands_by_epoch(trials))]
    if not drawn:
        return None
    last = max(epoch for _, bands in drawn for epoch, *_ in bands)
    # the first epochs would take most of the height
    shown = [v for _, bands in drawn for e, *values in bands if e > last * 0.15 or len(bands) < 3 for v in values]
    shown = shown or [v for _, bands in drawn for _, *values in bands for v in values]
    low, high = svg.padded(shown if teacher is None else [*shown, teacher], 0.04, LEAST_POINTS)
    y = svg.Scale(max(low, 0), min(high, 100), _bottom(len(drawn) + 1), 12)
    return _lines(f"Learning curves: {title}", drawn, y, _TOP1, " %", teacher)


def losses(title: str, lines: Lines) -> Markup | None:
    """Plots mean training loss by epoch like ``curves``, on a logarithmic axis if it spans more than a factor of 5."""
    drawn = [(mark, bands) for mark, trials in lines if (bands := bands_by_epoch(trials))]
    if not drawn:
        return None
    values = [value for _, bands in drawn for _, *values in bands for value in values]
    log = _is_log(values)
    low, high = (min(values) / 1.1, max(values) * 1.1) if log else svg.padded(values, 0.04, _LEAST_COSTS * max(values))
    y = svg.Scale(low, high, _bottom(len(drawn)), 12, log)
    return _lines(f"Training losses: {title}", drawn, y, "training loss", "", None)


def _lines(
    label: str,
    drawn: Sequence[tuple[Mark, list[tuple[int, float, float, float]]]],
    y: svg.Scale,
    y_title: str,
    unit: str,
    teacher: float | None,
) -> Markup:
    last = max(bands[-1][0] for _, bands in drawn)
    x = svg.Scale(min(1, last - 1), last, 52, _NAMES)
    parts = [svg.axes(x, y, "epoch", y_title, whole=True)]
    ends = [_clipped(y, bands[-1][2]) for _, bands in drawn] + ([] if teacher is None else [y(teacher)])
    heights = svg.spread_out(ends, _LINE, y.end + 4, y.start - 4)
    for (mark, bands), height in zip(drawn, heights, strict=False):
        step = math.ceil(len(bands) / _POINTS)
        thinned = [band for index, band in enumerate(bands) if index % step == 0 or index == len(bands) - 1]
        pixels = [(x(epoch), *(_clipped(y, value) for value in values)) for epoch, *values in thinned]
        upper, lower = [(e, top) for e, *_, top in pixels], [(e, bottom) for e, bottom, *_ in pixels]
        final = f"{bands[-1][2]:.2f}" if unit else svg.short(float(f"{bands[-1][2]:.3g}"))
        parts += [
            mark.open(),
            Markup("<title>{}: {}{} after epoch {}</title>").format(mark.label, final, unit, bands[-1][0]),
            Markup('<path class="band" d="{}Z"/>').format(svg.path(upper + lower[::-1])),
            Markup('<path class="line" d="{}"/>').format(svg.path([(e, mean) for e, _, mean, _ in pixels])),
            _name(mark, pixels[-1][0], pixels[-1][2], height),
        ]
    if teacher is not None:
        mark = Mark("teacher", palette.TEACHER, {})
        parts += [
            mark.open(),
            Markup("<title>teacher: {} %</title>").format(f"{teacher:.2f}"),
            Markup('<path class="line" d="{}"/>').format(svg.path([(x.start, y(teacher)), (x.end, y(teacher))])),
            _name(mark, x.end, y(teacher), heights[-1]),
        ]
    return svg.figure(_WIDTH, y.start + 44, label, *parts)


def _clipped(y: svg.Scale, value: float) -> float:
    """Returns the pixel of a value, or the nearest end of the axis."""
    return y(min(max(value, y.low), y.high))


def _is_log(values: Sequence[float]) -> bool:
    return max(values) > _LOG_FROM * min(values) > 0


def _bottom(names: int) -> float:
    """Returns the lower end of a plot that is high enough for this number of names beside it."""
    return max(296.0, 20 + _LINE * names)


def bands_by_epoch(trials: Sequence[Sequence[float | None]]) -> list[tuple[int, float, float, float]]:
    """Returns epoch from 1, lowest, mean and highest value over the trials that have a value."""
    bands = []
    for index in range(max(map(len, trials), default=0)):
        values = [value for trial in trials if index < len(trial) and (value := trial[index]) is not None]
        if values:
            bands.append((index + 1, min(values), statistics.fmean(values), max(values)))
    return bands


def scatter(
    title: str, points: Sequence[Point], x_title: str, y_title: str = _TOP1, cost: bool = True
) -> Markup | None:
    """Plots one quantity against another, with the standard deviation of the second and the name of each point.

    Returns None without points.

    Args:
        title, x_title, y_title: Of the plot and its axes.
        points: The methods.
        cost: Whether x is a cost, with a logarithmic axis if it spans more than a factor of 5, and not an accuracy.
    """
    if not points:
        return None
    values = [point.x for point in points]
    log = cost and _is_log(values)
    least = _LEAST_COSTS * max(values) if cost else LEAST_POINTS
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else svg.padded(values, 0.1, least)
    ends = [point.y.mean + sign * (point.y.std or 0) for point in points for sign in (-1, 1)]
    x = svg.Scale(low if log else max(low, 0), high, 52, _NAMES, log)
    y = svg.Scale(*svg.padded(ends, least=LEAST_POINTS), _bottom(len(points)), 12)
    heights = svg.spread_out([y(point.y.mean) for point in points], _LINE, y.end + 4, y.start - 4)
    parts = [svg.axes(x, y, x_title, y_title)]
    for point, height in zip(points, heights, strict=True):
        center_x, center_y, std = x(point.x), y(point.y.mean), point.y.std or 0.0
        whiskers = [(center_x, y(point.y.mean - std)), (center_x, y(point.y.mean + std))]
        parts += [
            point.mark.open(),
            Markup("<title>{}: {} ± {}, at {}</title>").format(
                point.mark.label, f"{point.y.mean:.2f}", f"{std:.2f}", svg.short(round(point.x, 2))),
            Markup('<path class="line thin" d="{}"/>').format(svg.path(whiskers)),
            _symbol(center_x, center_y, point.mark.look, point.hollow, point.square),
            _name(point.mark, center_x + 6, center_y, height),
        ]  # fmt: skip
    return svg.figure(_WIDTH, y.start + 44, title, *parts)


#: What is inside a symbol, by the stroke of its method: nothing, a bar, a dot, a cross.
_INSIDE = ("", "M-5 0H5", "M-1.2 0H1.2M0 -1.2V1.2", "M-5 0H5M0 -5V5")


def _symbol(x: float, y: float, look: Look, hollow: bool = False, square: bool = False) -> Markup:
    """Returns a square or a disc, with what distinguishes methods of the same colour inside."""
    style = "hollow" if hollow else "dot"
    if square:
        shape = Markup('<rect class="{}" x="{}" y="{}" width="10" height="10"/>')
        shape = shape.format(style, svg.px(x - 5), svg.px(y - 5))
    else:
        shape = Markup('<circle class="{}" cx="{}" cy="{}" r="5.5"/>').format(style, svg.px(x), svg.px(y))
    inside = _INSIDE[look.stroke]
    if inside:
        inner = Markup('<path class="inside" transform="translate({} {})" d="{}"/>')
        shape += inner.format(svg.px(x), svg.px(y), inside)
    return shape


def _name(mark: Mark, x: float, y: float, height: float) -> Markup:
    """Returns the name at the right edge, with a line from (x, y) to it, and the end tag of the method's group."""
    text = mark.label
    if len(text) > _CHARACTERS:  # variants of a method often differ at the end
        text = f"{text[: _CHARACTERS // 2 - 1]}…{text[-_CHARACTERS // 2 :]}"
    return Markup('<path class="leader" d="{}"/><text class="name" x="{}" y="{}">{}</text></g>').format(
        svg.path([(x, y), (_NAMES + 10, height)]), svg.px(_NAMES + 13), svg.px(height + 4), text
    )


def forest_scale(differences: Sequence[Difference]) -> svg.Scale:
    """Returns one scale for all intervals of a pair. It contains zero."""
    ends = [end for value in differences for end in (value.mean, value.low, value.high) if end is not None]
    return svg.Scale(*svg.padded([0.0, *ends], 0.05, LEAST_POINTS), 8, _FOREST_WIDTH - 8)


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
    zero = svg.px(scale(0))
    bar = Markup("")
    if difference.low is not None and difference.high is not None:
        bar = Markup('<line class="line" x1="{}" x2="{}" y1="11" y2="11"/>').format(
            svg.px(scale(difference.low)), svg.px(scale(difference.high)))  # fmt: skip
    return Markup(
        '<svg viewBox="0 0 {} 22" class="forest" aria-hidden="true"><line class="zero" x1="{}" x2="{}" y1="0" y2="22"/>'
        '<g class="{}">{}{}</g></svg>'
    ).format(
        svg.px(_FOREST_WIDTH), zero, zero, mark.look.classes, bar, _symbol(scale(difference.mean), 11.0, mark.look)
    )
