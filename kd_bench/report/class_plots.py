"""The page's plots of classes: changes by class, and confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from kd_bench.report import svg
from kd_bench.report.plots import LEAST_POINTS, Mark

#: Largest number of classes whose cells have numbers, and whose names are beside the matrix.
_NUMBERED = 20

#: Width of a letter of a label, at most.
_LETTER = 8.0

#: Largest number of classes of a matrix. Cells of more would be smaller than pixels.
LARGEST_MATRIX = 200

#: Lower ends of the shades, in percent of the images of a class.
SHADES = (0, 2, 5, 10, 20, 40, 60, 80)

_WIDTH = 560.0


def changes(title: str, mark: Mark, points: Sequence[float], names: Sequence[str]) -> Markup:
    """Plots a bar for each class, sorted by its change in percentage points; names stand below if they are short."""
    ordered = sorted(zip(points, names, strict=True), key=lambda item: item[0])
    height = 180.0
    x = svg.Scale(0, len(ordered), 52, _WIDTH - 12)
    y = svg.Scale(*svg.padded([0.0, *points], least=LEAST_POINTS), height - 14, 8)
    width = max((x.end - x.start) / len(ordered) - 0.6, 0.5)
    shown = max((len(name) for name in names), default=0) * _LETTER <= width  # else only in the tooltips
    label = '<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>'
    labels = Markup("").join(
        Markup(label).format(svg.px(x(index + 0.5)), svg.px(height - 2), name)
        for index, (_, name) in enumerate(ordered) if shown
    )  # fmt: skip
    bar = '<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}: {} points</title></rect>'
    bars = Markup("").join(
        Markup(bar).format(
            svg.px(x(index) + 0.3), svg.px(min(y(0), y(change))), svg.px(width), svg.px(abs(y(change) - y(0))), name,
            f"{change:+.2f}")
        for index, (change, name) in enumerate(ordered)
    )  # fmt: skip
    grid = svg.y_grid(x, y, 4)
    return svg.figure(_WIDTH, height, f"Changes by class: {title}", grid, mark.open(), bars, Markup("</g>"), labels)


def matrix(title: str, counts: Sequence[Mapping[int, int]], names: Sequence[str]) -> Markup:
    """Plots a confusion matrix: a row for each true class, a column for each predicted class.

    Args:
        title: Of the plot.
        counts: For each true class the number of its images by predicted class.
        names: Of the classes.
    """
    classes = len(counts)
    numbered = classes <= _NUMBERED
    labels = [_name(name) for name in names] if numbered else []
    left, top = (44.0, 30.0) if not numbered else (32 + 6.5 * max(map(len, labels)),) * 2
    cell = (_WIDTH - left - 8) / classes
    parts = [_labels(labels, cell, left, top) if numbered else _ticks(classes, cell, left, top)]
    parts.append(Markup('<g transform="translate({} {})">').format(svg.px(left), svg.px(top)))
    parts += _numbered_cells(counts, names, cell) if numbered else _shaded_cells(counts, cell)
    side = svg.px(cell * classes)
    parts.append(Markup('<rect class="frame" width="{}" height="{}"/></g>').format(side, side))
    return svg.figure(_WIDTH, top + cell * classes + 8, f"Confusion matrix: {title}", *parts)


def _name(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _shade(count: int, total: int) -> int:
    """Returns the shade of a share of the images of a class."""
    return sum(100 * count >= shade * total for shade in SHADES[1:])


def _numbered_cells(counts: Sequence[Mapping[int, int]], names: Sequence[str], cell: float) -> list[Markup]:
    parts = []
    for true, row in enumerate(counts):
        total = sum(row.values())
        for predicted, count in sorted(row.items()):
            kind = "hit" if true == predicted else "miss"
            parts.append(
                Markup(
                    '<g class="{} h{}"><title>{} as {}: {} of {}</title>'
                    '<rect x="{}" y="{}" width="{}" height="{}"/><text x="{}" y="{}" text-anchor="middle">{}</text></g>'
                ).format(
                    kind, _shade(count, total), names[true], names[predicted], count, total,
                    svg.px(predicted * cell), svg.px(true * cell), svg.px(cell), svg.px(cell),
                    svg.px((predicted + 0.5) * cell), svg.px((true + 0.5) * cell + 4), count)
            )  # fmt: skip
    return parts


def _shaded_cells(counts: Sequence[Mapping[int, int]], cell: float) -> list[Markup]:
    """Returns a path for each shade, because a hundred classes have thousands of cells: a line as high as a row."""
    paths: dict[tuple[str, int], list[str]] = {}
    for true, row in enumerate(counts):
        total = sum(row.values())
        ends: dict[tuple[str, int], int] = {}
        for predicted, count in sorted(row.items()):
            key = ("hit" if true == predicted else "miss", _shade(count, total))
            move = f"m{predicted - ends[key]} 0" if key in ends else f"M{predicted} {true}.5"
            paths.setdefault(key, []).append(f"{move}h1")
            ends[key] = predicted + 1
    return [
        Markup('<path class="{} h{}" transform="scale({})" d="{}"/>').format(kind, shade, f"{cell:.4g}", "".join(cells))
        for (kind, shade), cells in sorted(paths.items())
    ]


def _labels(names: Sequence[str], cell: float, left: float, top: float) -> Markup:
    """Returns the names of the classes beside and above the matrix."""
    rows = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    columns = Markup('<text class="tick" transform="translate({} {}) rotate(-90)">{}</text>')
    parts = []
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell + 4
        parts.append(rows.format(svg.px(left - 6), svg.px(top + middle), name))
        parts.append(columns.format(svg.px(left + middle), svg.px(top - 6), name))
    return Markup("").join(parts) + _titles(left, top, cell * len(names), 8.0)


def _ticks(classes: int, cell: float, left: float, top: float) -> Markup:
    """Returns the numbers of the classes, which are those of the table beside."""
    step = 10 if classes <= 100 else 20
    rows = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    columns = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts = []
    for index in range(0, classes, step):
        middle = (index + 0.5) * cell
        parts.append(rows.format(svg.px(left - 4), svg.px(top + middle + 4), index))
        parts.append(columns.format(svg.px(left + middle), svg.px(top - 4), index))
    return Markup("").join(parts) + _titles(left, top, cell * classes, 12.0)


def _titles(left: float, top: float, side: float, margin: float) -> Markup:
    return Markup(
        '<text class="axis" x="{}" y="{}" text-anchor="middle">predicted class</text><text class="axis" '
        'text-anchor="middle" transform="translate({} {}) rotate(-90)">true class</text>'
    ).format(svg.px(left + side / 2), svg.px(margin + 4), svg.px(margin + 4), svg.px(top + side / 2))
