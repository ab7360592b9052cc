"""The page's plots as text: what is drawn, and where axes begin and end."""

from __future__ import annotations

import itertools
import re

from kd_bench.config.corruptions import CORRUPTIONS
from kd_bench.report import class_plots, corruption_plot, plots
from kd_bench.report.palette import Look
from kd_bench.report.statistics import Difference, MeanAndStd

MARKS = [
    plots.Mark(label, Look(index, index % 4), {"method": str(index)}) for index, label in enumerate(("kd", "mine"))
]


def ticks(svg: str, anchor: str) -> list[float]:
    """Labels of the axis whose labels have this anchor: "middle" of x, "end" of y."""
    return [float(text) for text in re.findall(rf'class="tick"[^>]*text-anchor="{anchor}">([^<]+)<', svg)]


def points(*values: float) -> list[plots.Point]:
    return [plots.Point(mark, value, MeanAndStd(70.0, 0.01, 3)) for mark, value in zip(MARKS, values, strict=True)]


def test_axes_do_not_zoom_into_noise() -> None:
    memory = plots.scatter("memory", points(1108.90, 1108.94), "MiB at most")
    assert memory is not None
    x, y = ticks(memory, "middle"), ticks(memory, "end")
    assert x[-1] - x[0] >= 50 and all(tick == round(tick) for tick in x)
    assert y[0] <= 69.6 and y[-1] >= 70.4
    curve = plots.curves("c", [(MARKS[0], [[70.0, 70.01, 70.02]])])
    assert curve is not None
    assert max(ticks(curve, "end")) - min(ticks(curve, "end")) >= 0.8
    scale = plots.forest_scale([Difference(0.01, 0.0, 0.02, 3)])
    assert scale.high - scale.low >= 1.0


def test_costs_of_several_magnitudes_are_on_a_logarithmic_axis() -> None:
    svg = plots.scatter("cost", points(1.0, 90.0), "seconds an epoch")
    assert svg is not None and ticks(svg, "middle") == [1, 2, 5, 10, 20, 50, 100]
    svg = plots.scatter("robust", points(1.0, 90.0), "clean, %", cost=False)
    assert svg is not None and ticks(svg, "middle")[:2] == [0, 20]


def test_curves_have_the_teacher_and_whole_epochs() -> None:
    lines = [(mark, [[50.0, 60.0, 61.0 + index]]) for index, mark in enumerate(MARKS)]
    svg = plots.curves("c", lines, 79.5)
    assert svg is not None and "<title>teacher: 79.50 %</title>" in svg and svg.count('class="band"') == 2
    assert ticks(svg, "middle") == [1, 2, 3]
    assert max(ticks(svg, "end")) >= 75, "the teacher's line is within the axis"
    assert 'class="mark s0 t0"' in svg and 'class="mark plain t2"' in svg
    assert "teacher" not in (plots.curves("c", lines) or "")
    assert plots.curves("c", [(MARKS[0], [[], [None]])], 79.5) is None


def test_losses() -> None:
    svg = plots.losses("l", [(MARKS[0], [[8.0, 2.0, 0.5]]), (MARKS[1], [[4.0, None, 1.0], [6.0, 3.0, 2.0]])])
    assert svg is not None and "<title>mine: 1.5 after epoch 3</title>" in svg
    assert ticks(svg, "end") == [0.5, 1, 2, 5]
    assert plots.losses("l", [(MARKS[0], [])]) is None
    below_zero = plots.losses("l", [(MARKS[0], [[1.0, -1.0]])])
    assert below_zero is not None and min(ticks(below_zero, "end")) == -1


def test_a_plot_is_as_high_as_its_names_need() -> None:
    many = [(plots.Mark(f"m{index}", Look(0, 0), {}), [[50.0, 60.0]]) for index in range(40)]
    svg = plots.curves("c", many)
    assert svg is not None
    heights = sorted(float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', svg))
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 12.9
    assert heights[0] > 0 and heights[-1] < float(re.findall(r'viewBox="0 0 560 ([\d.]+)"', svg)[0]) - 40


def test_long_names_are_cut_in_the_middle() -> None:
    marks = [plots.Mark(f"ikl_kd (weights class, tau {tau})", Look(0, 0), {}) for tau in (2, 4)]
    svg = plots.curves("c", [(mark, [[50.0, 60.0]]) for mark in marks])
    names = re.findall(r'class="name"[^>]*>([^<]+)<', svg or "")
    assert len(set(names)) == 2 and all(len(name) <= 18 for name in names)


def test_a_small_matrix_has_numbers_and_names() -> None:
    svg = class_plots.matrix("kd", [{0: 9, 1: 1}, {1: 10}, {}], ["cat", "<dog>", "none"])
    assert (
        "<title>cat as &lt;dog&gt;: 1 of 10</title>" in svg
        and "<title>&lt;dog&gt; as &lt;dog&gt;: 10 of 10</title>" in svg
    )
    assert svg.count('class="hit h7"') == 2 and svg.count('class="miss h3"') == 1
    assert svg.count(">cat</text>") == 2


def test_a_large_matrix_is_a_path_for_each_shade() -> None:
    counts = [{index: 90, (index + 1) % 100: 3, (index + 5) % 100: 7} for index in range(100)]
    svg = class_plots.matrix("kd", counts, [f"class {index}" for index in range(100)])
    assert svg.count("<path") == 3 and len(svg) < 8000
    cells = {path[0]: path[1] for path in re.findall(r'<path class="(\w+ h\d)"[^>]* d="([^"]+)"', svg)}
    assert _filled(cells["hit h7"]) == {(index, index) for index in range(100)}
    assert _filled(cells["miss h1"]) == {((index + 1) % 100, index) for index in range(100)}
    two = class_plots.matrix("kd", [{3: 1, 4: 1, 9: 1, 0: 97}, *({index: 1} for index in range(1, 30))], ["x"] * 30)
    assert 'd="M3 0.5h1m0 0h1m4 0h1"' in two


def _filled(path: str) -> set[tuple[int, int]]:
    """The cells of a path of lines that each begin with an absolute move."""
    return {(int(x), int(float(y))) for x, y in re.findall(r"M(\d+) ([\d.]+)h1", path)}


def test_a_heat_map_has_numbers_shades_and_a_text() -> None:
    def line(mark: plots.Mark, first: float) -> corruption_plot.HeatMapLine:
        return corruption_plot.HeatMapLine(mark, tuple(MeanAndStd(first + index, 0.5, 3) for index in range(15)))

    svg = corruption_plot.heat_map("a <b>", [line(MARKS[0], 40.0), line(MARKS[1], 50.0)])
    assert svg is not None and corruption_plot.heat_map("a", []) is None
    assert svg.count("<rect") == 31 and "<b>" not in svg
    assert f"<title>kd, {CORRUPTIONS[0].replace('_', ' ')}: 40.00 ± 0.50 %</title>" in svg
    assert [text.replace(" ", "_") for text in re.findall(r'class="tick"[^>]*>([^<]+)<', svg)] == list(CORRUPTIONS)
    shades = [int(shade) for shade in re.findall(r'class="hit h(\d)"', svg)]
    assert shades[0] == 0 and shades[29] == 7 and shades[:15] == sorted(shades[:15])
    assert shades[10] == shades[15], "the same accuracy has the same shade"
    assert "kd: 47.0 % in the mean, from 40.0 % with gaussian noise to 54.0 % with jpeg compression." in svg
    assert "mine: 57.0 % in the mean" in svg
    flat = corruption_plot.heat_map("flat", [corruption_plot.HeatMapLine(MARKS[0], (MeanAndStd(1.0, None, 1),) * 15)])
    assert flat is not None and 'class="hit h0"' in flat and "h7" not in flat
