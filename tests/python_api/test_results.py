"""Results for notebooks: frames, tables and figures are those of the report."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from markupsafe import escape
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kd_bench import UserError, load
from kd_bench.python_api.results import Results
from kd_bench.report.palette import COLOURS
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults
from tests.report.trials import plan, render_summary

mpl.use("agg")

ACCURACIES: dict[str, list[float | None]] = {
    "none": [60.0, 61.0, 62.0],
    "kd": [64.0, 66.0, 65.0],
    "ikl_kd": [67.0, 68.0, 69.0],
    "_my$loss<b>": [66.0, None, 65.0],
}


def part(folder: Path, **pair: str) -> FolderResults:
    cells = plan(folder, ACCURACIES, **pair)
    frame = read_results(folder, cells)
    return FolderResults(folder.name, "about", summarise(frame), frame, tuple(cells), folder)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results([part(tmp_path / "one")])


def test_frame(results: Results) -> None:
    frame = results.frame()
    assert list(frame.columns[:8]) == ["recipe", *results.parts[0].frame.columns[:7]]
    assert frame["recipe"].unique().tolist() == ["one"]
    done = frame[frame["status"] == "done"]
    assert dict(zip(zip(done["label"], done["seed"], strict=True), done["top1_last"], strict=True)) == {
        (label, seed): value
        for label, values in ACCURACIES.items()
        for seed, value in enumerate(values)
        if value is not None
    }
    assert frame["status"].tolist().count("missing") == 1
    assert "recipe" not in results.parts[0].frame


def test_differences_are_those_of_the_csv_table(results: Results) -> None:
    frame = results.differences().set_index("label")
    assert frame.index.tolist() == ["none", "ikl_kd", "_my$loss<b>"]
    assert frame.loc["ikl_kd", "mean"] == 3.0 and frame["n"].tolist() == [3, 3, 2]
    table = render_summary(results.parts[0].summary, "csv")
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(table))}
    for label, row in frame.iterrows():
        expected = rows[str(label)]
        for column, csv_column in (("mean", "difference_mean"), ("low", "difference_low"), ("high", "difference_high"),
                                   ("p_paired_t", "p_paired_t"), ("p_sign_flip", "p_sign_flip")):  # fmt: skip
            assert row[column] == float(expected[csv_column])
        assert (row["baseline"], row["student"], row["recipe"]) == ("kd", expected["student"], "one")
    assert frame["bootstrap_low"].isna().all()


def test_without_a_baseline_there_are_no_differences(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"none": [60.0]})
    frame = read_results(tmp_path, cells)
    alone = Results([FolderResults("one", "", summarise(frame), frame, tuple(cells), tmp_path)])
    assert len(alone.differences()) == 0 and alone.differences()["n"].dtype == "int64"
    assert Results([]).differences().columns.tolist() == alone.differences().columns.tolist()


def test_the_table_is_text_and_html(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    summary = results.parts[0].summary
    assert f"{results.table()}\n" == render_summary(summary, "terminal", width=90)
    assert repr(results.table()) == str(results.table()) == repr(results)
    assert f"{results.table('latex')}\n" == render_summary(summary, "latex")
    html = results.table()._repr_html_()
    assert html == results._repr_html_() == render_summary(summary, "html")
    assert "<caption>resnet20 → resnet8 on digits</caption>" in html
    assert "_my$loss&lt;b&gt;" in html and "<b>" not in html
    assert re.findall(r"<td[^>]*>(6[\d.]+ ± [\d.]+ \([\d/]+\))</td>", html) == [
        "61.00 ± 1.00 (3)", "65.00 ± 1.00 (3)", "68.00 ± 1.00 (3)", "65.50 ± 0.71 (2/3)"]  # fmt: skip
    assert html.count("<table>") == html.count("</table>") == 1 and html.count("<tbody>") == 2
    for note in summary.footnotes:
        assert f"<li>{escape(note)}</li>" in html
    with pytest.raises(UserError, match=r"table: no format is called 'latx'; did you mean 'latex'\?"):
        results.table("latx")


def test_several_parts_have_headings(tmp_path: Path) -> None:
    results = Results([part(tmp_path / "one"), part(tmp_path / "two", student="resnet14")])
    assert str(results.table()).startswith("one\n\nresnet20 → resnet8 on digits\n")
    assert "\ntwo\n\nresnet20 → resnet14 on digits\n" in str(results.table())
    assert re.findall(r"<h3>(.+)</h3>", results._repr_html_()) == ["one", "two"]
    assert str(results.table("latex")).startswith("% needs")
    assert results.pairs == ["one: resnet20 → resnet8 on digits", "two: resnet20 → resnet14 on digits"]
    assert results.frame()["recipe"].value_counts().to_dict() == {"one": 12, "two": 12}
    with pytest.raises(UserError, match="pair: there are several; name one of them: one: resnet20 → resnet8 on"):
        results.plot_curves()
    with pytest.raises(UserError, match="no pair is called 'two'"):
        results.plot_cost("two")
    assert results.plot_cost(results.pairs[1]).get_title() == "resnet20 → resnet14 on digits"


def test_curves(results: Results) -> None:
    figure = Figure()
    axes = figure.subplots()
    assert results.plot_curves(ax=axes) is axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["student alone", "kd", "ikl_kd", r" _my\$loss<b>", "teacher"]
    assert lines["kd"].get_xdata()[-1] == 30 and lines["kd"].get_ydata()[-1] == 65.0
    assert to_hex(str(lines["kd"].get_color())) == COLOURS[0][0]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 5
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == list(lines)
    figure.canvas.draw()  # names with a dollar are no formulas


def test_differences_figure(results: Results) -> None:
    axes = results.plot_differences()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["student alone (n = 3)", "ikl_kd (n = 3)", r" _my\$loss<b> (n = 2)"]
    frame = results.differences().set_index("label")
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 1]
    assert list(lines[0].get_xdata()) == [frame.loc["ikl_kd", "low"], frame.loc["ikl_kd", "high"]]
    assert axes.get_xlabel() == "difference to kd in points, with its 95 % interval"
    axes.figure.canvas.draw()


def test_cost_figure(results: Results) -> None:
    axes = results.plot_cost()
    assert [text.get_text() for text in axes.texts] == ["student alone", "kd", "ikl_kd", r" _my\$loss<b>"]
    points = [container[0] for container in axes.containers]
    assert [point.get_xydata().tolist() for point in points] == [[[4.0, m]] for m in (61.0, 65.0, 68.0, 65.5)]
    assert [point.get_markerfacecolor() == "none" for point in points] == [False, False, False, True]


def test_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: there is no such folder of results; kd_bench\.compare makes one"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="there are no trials in"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"load: out: should be the path of a folder \(it is None\)"):
        load(None)  # type: ignore[arg-type]
    measured = Path(__file__).parents[2] / "results" / "measured"
    assert [part.name for part in load(measured, recipes="demo").parts] == ["demo"]
    for wrong in (3, {"name": "demo"}, [None]):
        with pytest.raises(UserError, match="load: recipes: should be files or names of recipes"):
            load(measured, recipes=wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="load: methods: name the recipe that they are rows of"):
        load(measured, methods="kd")
    assert str(load(measured, recipes=["demo"]).differences()["label"].tolist()) == (
        "['none', 'dkd', 'ikl_kd', 'ikl_kd_class']"
    )


def test_matplotlib_is_named_if_it_is_not_there(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError) as caught:
        results.plot_curves()
    assert str(caught.value) == (
        "plot_curves needs another package; install it with: pip install 'kd-bench[notebook]', in a checkout: pip "
        "install '.[notebook]'"
    )


def test_a_table_is_read_without_torch_and_matplotlib() -> None:
    code = (
        "import sys, kd_bench; results = kd_bench.load('results/measured', recipes=['demo']); str(results.table()); "
        "results._repr_html_(); results.differences(); "
        "print([name for name in ('torch', 'timm', 'matplotlib', 'IPython') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
