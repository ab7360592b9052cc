"""Figures of one pair of networks with matplotlib, for notebooks and papers.

They show what the plots of the page show. Each function draws on given axes, and matplotlib is imported only by who
makes the axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_bench.report import palette
from kd_bench.report.palette import Look
from kd_bench.report.plots import bands_by_epoch
from kd_bench.report.summary import CONFIDENCE, PairTable, SummaryRow, baseline_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colour of the student alone, of the teacher and of axes, which no method has.
_DARK = "0.15"

#: Lines and points by the number of a look's stroke.
_STROKES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")

_TOP1 = "top-1 on the test set, %"


class _Style(NamedTuple):
    colour: str
    line: str
    marker: str


def draw_curves(pair: PairTable, curves: Mapping[str, Sequence[float | None]], axes: Axes) -> None:
    """Draws mean test accuracy by epoch, with a band from the lowest to the highest trial.

    The teacher's accuracy after its last epoch is a horizontal line. Rows that are not comparable are left out, as on
    the page.

    Args:
        pair: The pair.
        curves: Accuracy by epoch in percent, by the trial's id.
        axes: Where to draw.
    """
    for row, style in _styled(pair):
        bands = bands_by_epoch([curves.get(trial, ()) for trial in row.trials])
        if row.comparable and bands:
            epochs, low, mean, high = zip(*bands, strict=True)
            axes.plot(epochs, mean, style.line, color=style.colour, label=_text(row.name))
            axes.fill_between(epochs, low, high, color=style.colour, alpha=0.15, linewidth=0)
    teacher = pair.first("teacher")
    if teacher is not None and teacher.top1 is not None:
        axes.axhline(teacher.top1.mean, linestyle=_style(palette.TEACHER).line, color=_DARK, label="teacher")
    axes.set(title=_text(pair.title), xlabel="epoch", ylabel=_TOP1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def draw_differences(pair: PairTable, baseline: str | None, axes: Axes) -> None:
    """Draws each row's difference to the baseline, with its interval; the first row is at the top."""
    rows = [item for item in _styled(pair) if item[0].difference is not None]
    names = []
    for height, (row, style) in enumerate(rows):
        difference = row.difference
        assert difference is not None
        over = difference.over if difference.crossing else f"n = {difference.n}"
        names.append(f"{_text(row.name)} ({over})")
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [height, height], color=style.colour)
        axes.plot([difference.mean], [height], style.marker, color=style.colour)
    axes.axvline(0, color=_DARK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    interval = f"with its {round(100 * CONFIDENCE)} % interval"
    axes.set(
        title=_text(pair.title), xlabel=f"difference to {_text(baseline_name(baseline or ''))} in points, {interval}"
    )


def draw_cost(pair: PairTable, axes: Axes) -> None:
    """Draws accuracy, with its standard deviation, against the seconds that training takes for an epoch.

    Rows that are incomplete or of another protocol are hollow.
    """
    rows = [(row, style, row.top1, row.seconds) for row, style in _styled(pair)]
    middle = fmean([seconds for *_, seconds in rows if seconds is not None] or [0.0])
    for row, style, top1, seconds in rows:
        if top1 is None or seconds is None:
            continue
        hollow = not (row.complete and row.comparable)
        point: dict[str, Any] = {"fmt": style.marker, "markerfacecolor": "none" if hollow else style.colour}
        axes.errorbar([seconds], [top1.mean], yerr=[top1.std or 0.0], color=style.colour, **point)
        side = -1 if seconds > middle else 1  # names point inwards, so that they end inside of the axes
        label_options: dict[str, Any] = {"textcoords": "offset points", "xytext": (6 * side, 3)}
        label_options["horizontalalignment"] = "left" if side > 0 else "right"
        axes.annotate(_text(row.name), (seconds, top1.mean), color=style.colour, **label_options)
    axes.margins(x=0.15)
    axes.set(title=_text(pair.title), xlabel="seconds an epoch", ylabel=_TOP1)


def _styled(pair: PairTable) -> Iterator[tuple[SummaryRow, _Style]]:
    """Yields the rows of the student alone and of the methods, each with its look on the page."""
    looks = palette.looks(row.label for row in pair.rows if row.kind == "method")
    for row in pair.rows:
        if row.kind != "teacher":
            yield row, _style(looks.get(row.label, palette.STUDENT))


def _style(look: Look) -> _Style:
    colour = _DARK if look.colour is None else palette.COLOURS[look.colour][0]
    return _Style(colour, _STROKES[look.stroke], _MARKERS[look.stroke])


def _text(name: str) -> str:
    """Returns a name as matplotlib shows it: "$" would begin a formula, and a legend leaves out names like "_x"."""
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")
