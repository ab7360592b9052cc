"""The page's heat map of accuracy on corrupted images: a line for each row of a pair, a column for each corruption."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kd_bench.config.corruptions import CORRUPTIONS
from kd_bench.report import svg
from kd_bench.report.class_plots import SHADES
from kd_bench.report.corruption_columns import COLUMN_OF
from kd_bench.report.plots import Mark
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summary import SummaryRow

_WIDTH = 560.0

#: Left edge of the cells, and the number of characters of a name that fit beside them.
_LEFT, _CHARACTERS = 116.0, 17

#: Height of the names of the corruptions above the cells, and of a line.
_TOP, _LINE = 124.0, 24.0


@dataclass(frozen=True)
class HeatMapLine:
    """A line of the heat map.

    Attributes:
        mark: The method, the student alone, or the teacher.
        values: Accuracy in percent for each corruption, in their order; the mean over severities and trials.
    """

    mark: Mark
    values: tuple[MeanAndStd, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the corruptions."""
        return statistics.fmean(value.mean for value in self.values)


def values_of(row: SummaryRow) -> tuple[tuple[MeanAndStd, ...], str] | None:
    """Returns a row's accuracy for each corruption, and how it was measured.

    Returns None for a row that was not evaluated, and for one that was measured otherwise than the rest.
    """
    cells = [row.columns.get(COLUMN_OF[name]) for name in CORRUPTIONS]
    values = tuple(cell.value for cell in cells if cell is not None and cell.value is not None and not cell.marked)
    return (values, next(cell.protocol or "" for cell in cells if cell)) if len(values) == len(CORRUPTIONS) else None


def heat_map(title: str, lines: Sequence[HeatMapLine]) -> Markup | None:
    """Plots the accuracies as numbers in shaded cells; None without lines.

    The shades divide the range from the lowest to the highest accuracy of the map into equal steps. The label for
    screen readers has the mean of each line, and its lowest and highest accuracy.
    """
    if not lines:
        return None
    means = [value.mean for line in lines for value in line.values]
    low, high = min(means), max(means)
    cell = (_WIDTH - _LEFT - 4) / (len(CORRUPTIONS) + 1)
    parts = [_heads(cell)]
    for index, line in enumerate(lines):
        top = _TOP + index * _LINE
        parts += [line.mark.open(), _name(line.mark.label, top + _LINE / 2 + 4)]
        for column, (corruption, value) in enumerate(zip(CORRUPTIONS, line.values, strict=True)):
            std = "" if value.std is None else f" ± {value.std:.2f}"
            parts.append(
                Markup(
                    '<g class="hit h{}"><title>{}, {}: {}{} %</title><rect x="{}" y="{}" width="{}" height="{}"/>'
                    '<text x="{}" y="{}" text-anchor="middle">{}</text></g>'
                ).format(
                    _shade(value.mean, low, high), line.mark.label, _title(corruption), f"{value.mean:.2f}", std,
                    svg.px(_LEFT + column * cell), svg.px(top), svg.px(cell), svg.px(_LINE),
                    svg.px(_LEFT + (column + 0.5) * cell), svg.px(top + _LINE / 2 + 4), f"{value.mean:.1f}")
            )  # fmt: skip
        parts.append(
            Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text></g>').format(
                svg.px(_LEFT + (len(CORRUPTIONS) + 0.5) * cell + 3), svg.px(top + _LINE / 2 + 4), f"{line.mean:.1f}")
        )  # fmt: skip
    side, height = cell * len(CORRUPTIONS), _LINE * len(lines)
    frame = Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>')
    parts.append(frame.format(svg.px(_LEFT), svg.px(_TOP), svg.px(side), svg.px(height)))
    label = f"Accuracy under corruptions: {title}. {' '.join(map(_sentence, lines))}"
    return svg.figure(_WIDTH, _TOP + height + 6, label, *parts)


def _sentence(line: HeatMapLine) -> str:
    """Returns a line in words."""
    by_value = sorted(zip(line.values, CORRUPTIONS, strict=True), key=lambda item: item[0].mean)
    (low, lowest), (high, highest) = by_value[0], by_value[-1]
    return (
        f"{line.mark.label}: {line.mean:.1f} % in the mean, from {low.mean:.1f} % with {_title(lowest)} "
        f"to {high.mean:.1f} % with {_title(highest)}."
    )


def _heads(cell: float) -> Markup:
    """Returns the names of the corruptions, upwards, and that of the mean."""
    text = Markup('<text class="{}" transform="translate({} {}) rotate(-90)">{}</text>')
    names = [("tick", _title(name)) for name in CORRUPTIONS] + [("axis", "mean")]
    return Markup("").join(
        text.format(kind, svg.px(_LEFT + (index + 0.5) * cell + 4 + 3 * (kind == "axis")), svg.px(_TOP - 6), name)
        for index, (kind, name) in enumerate(names)
    )


def _name(label: str, y: float) -> Markup:
    shown = label if len(label) <= _CHARACTERS else f"{label[: _CHARACTERS // 2]}…{label[-_CHARACTERS // 2 + 1 :]}"
    return Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(
        svg.px(_LEFT - 6), svg.px(y), shown
    )


def _title(corruption: str) -> str:
    return corruption.replace("_", " ")


def _shade(value: float, low: float, high: float) -> int:
    """Returns the number of the shade of a value between the lowest and the highest one."""
    return min(int(len(SHADES) * (value - low) / (high - low)), len(SHADES) - 1) if high > low else 0
