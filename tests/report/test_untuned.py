"""The mark of rows whose hyper-parameters nobody published: in every format, and in no trial's identity."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.report.page import page
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults, Summary
from kd_bench.report.untuned import mark_untuned
from tests.report.trials import put, render_summary, write_trial

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "digits",
    "epochs": 2,
    "trials": 1,
    "pairs": [
        {"teacher": "resnet20", "student": "resnet8", "methods": {"ttm": {"untuned": False}, "nkd": {"untuned": True}}},
        {"teacher": "resnet14", "student": "resnet8", "methods": {"dkd": {"beta": 2, "untuned": "the settings of A"}}},
    ],
    "methods": {"kd": {}, "dkd": {}, "nkd": {}, "ttm": {"beta": 45, "untuned": "the settings of VGG13 to VGG8"}},
}


def cells(*overrides: str, **changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes, overrides), "r")


def marked(folder: Path, planned: list[PlannedTrial]) -> Summary:
    top1 = {"kd": 63.0, "dkd": 62.0, "nkd": 61.0, "ttm": 60.0}
    for cell in planned:
        write_trial(folder / "r" / cell.trial_id, cell.trial)
        put(folder / "r" / cell.trial_id, top1_last=top1[cell.label], top1_best=70.0)
    return mark_untuned(summarise(read_results(folder / "r", planned)), planned)


def test_a_row_and_a_pair_say_what_is_untuned(tmp_path: Path) -> None:
    summary = marked(tmp_path, cells())
    marks = [{row.label: row.untuned for row in pair.rows if row.kind != "teacher"} for pair in summary.pairs]
    assert marks == [
        {"kd": False, "dkd": False, "nkd": True, "ttm": False},
        {"kd": False, "dkd": True, "nkd": False, "ttm": True},
    ]
    assert summary.footnotes[-1] == (
        "Untuned: no hyper-parameters of the method are published for this pair, and none were searched for here; "
        "tuned rows may have an advantage. Used instead: nkd: the settings of other networks; dkd: the settings of A; "
        "ttm: the settings of VGG13 to VGG8."
    )


def test_what_was_used_is_named_by_pair_if_it_differs(tmp_path: Path) -> None:
    methods = RECIPE["methods"] | {"nkd": {"untuned": "the settings of B"}}
    note = marked(tmp_path, cells(methods=methods)).footnotes[-1]
    assert "nkd: the settings of other networks (resnet20 → resnet8), the settings of B (resnet14 → resnet8)" in note


def test_the_mark_changes_no_trial() -> None:
    plain = cells(
        methods={"kd": {}, "dkd": {}, "nkd": {}, "ttm": {"beta": 45}},
        pairs=[
            {"teacher": "resnet20", "student": "resnet8"},
            {"teacher": "resnet14", "student": "resnet8", "methods": {"dkd": {"beta": 2}}},
        ],
    )
    assert [cell.trial_id for cell in cells()] == [cell.trial_id for cell in plain]
    assert not any(cell.untuned for cell in plain)
    assert "untuned" not in str([cell.trial.settings() for cell in cells()])


def test_the_mark_can_be_set_from_the_command_line() -> None:
    first = {cell.label: cell.untuned for cell in cells("pairs.0.methods.kd.untuned=true", "methods.ttm.untuned=null")}
    assert first["kd"] is False and first["ttm"] is False  # of the second pair, which stands last
    pairs = [cell.untuned for cell in cells("pairs.0.methods.kd.untuned=true") if cell.label == "kd"]
    assert pairs == [True, False]


@pytest.mark.parametrize("format", ["terminal", "plain", "markdown", "latex-long", "html"])
def test_tables_mark_the_rows(tmp_path: Path, format: str) -> None:
    text = render_summary(marked(tmp_path, cells()), format, width=140)
    assert text.count("(untuned)") == 3 and "no hyper-parameters of the method are published for this pair" in text
    without = cells(pairs=[{"teacher": "resnet20", "student": "resnet8"}], methods=["kd", "dkd"])
    assert "untuned" not in render_summary(marked(tmp_path, without), format, width=140)


def test_the_layout_of_the_paper_marks_the_cells(tmp_path: Path) -> None:
    text = render_summary(marked(tmp_path, cells()), "latex")
    assert r" & kd & \textbf{63.00} & \textbf{63.00} \\" in text
    assert r" & dkd & \underline{62.00} & \underline{62.00\,{\scriptsize (u)}} \\" in text
    assert r" & nkd & 61.00\,{\scriptsize (u)} & 61.00 \\" in text
    assert r" & ttm & 60.00 & 60.00\,{\scriptsize (u)} \\" in text
    assert "(u) marks untuned rows" in text and "Untuned: no hyper-parameters" in text


def test_csv_has_a_column(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render_summary(marked(tmp_path, cells()), "csv"))))
    assert [row["label"] for row in rows if row["untuned"] == "True"] == ["nkd", "dkd", "ttm"]
    assert {row["untuned"] for row in rows} == {"True", "False"}


def test_the_page_marks_the_cells(tmp_path: Path) -> None:
    planned = cells()
    summary = marked(tmp_path, planned)
    frame = read_results(tmp_path / "r", planned)
    text = page([FolderResults("r", "", summary, frame, planned, tmp_path / "r", "r")])
    # in the table and beside the differences to the baseline
    assert text.count(">untuned</span>") == 2 * 3 and text.count("(untuned)</th>") == 3
    assert text.count("Untuned: no hyper-parameters of the method are published for this pair.") >= 3
