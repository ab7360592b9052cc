import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from kd_bench.config.trial import PlannedTrial
from kd_bench.report.results_frame import read_result, read_results
from kd_bench.report.summarise import summarise
from tests.report.trials import Cell, fail, plan, put


def test_the_stand_in_offers_no_more_than_the_real_plan() -> None:
    assert {field.name for field in fields(Cell)} <= {
        *dir(PlannedTrial),
        *(field.name for field in fields(PlannedTrial)),
    }


def test_a_row_for_every_planned_cell(tmp_path: Path) -> None:
    put(tmp_path / "teachers" / "t0", top1_last=97.2, top1_best=97.5, epochs=40, seconds_per_epoch=2.0)
    folder = tmp_path / "demo"
    cells = plan(folder, {"kd": [63.1, None], "dkd": [64.2, None]})
    fail(folder / "dkd1")
    frame = read_results(folder, cells)
    assert frame[["label", "seed", "status"]].values.tolist() == [
        ["kd", 0, "done"],
        ["kd", 1, "missing"],
        ["dkd", 0, "done"],
        ["dkd", 1, "failed"],
    ]
    first, last = frame.iloc[0], frame.iloc[3]
    assert (first["top1_last"], first["top1_best"], first["best_epoch"], first["epochs"]) == (63.1, 64.1, 27, 30)
    assert (first["seconds_per_epoch"], first["parameters"], first["dataset"]) == (4.0, 78042, "digits")
    assert last["reason"] == "the loss is not finite in epoch 3" and last["epochs"] == 2
    assert pd.isna(last["top1_last"]) and pd.isna(first["reason"])
    assert frame["teacher_top1"].tolist() == [97.2] * 4
    assert frame["teacher_epochs"].tolist() == [40] * 4


def test_columns_and_types_do_not_depend_on_what_was_run(tmp_path: Path) -> None:
    cells = plan(tmp_path / "full", {"kd": [63.1]})
    full = read_results(tmp_path / "full", cells)
    empty = read_results(tmp_path / "nowhere", cells)
    none = read_results(tmp_path / "nowhere", [])
    assert full.dtypes.tolist() == empty.dtypes.tolist() == none.dtypes.tolist()
    assert empty["status"].tolist() == ["missing"] and len(none) == 0


def test_a_teacher_without_a_trial_of_its_own_is_known_by_what_it_taught(tmp_path: Path) -> None:
    cells = plan(tmp_path / "demo", {"none": [61.0], "kd": [63.1]}, teacher_id=None, teacher="published")
    put(tmp_path / "demo" / "publishednone0", top1_last=61.0, teacher_top1=None)
    frame = read_results(tmp_path / "demo", cells)
    assert frame["teacher_top1"].fillna(-1).tolist() == [-1, 97.0]
    assert frame["teacher_status"].isna().all()


def test_the_teachers_folder_can_be_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "shared" / "t0", top1_last=88.0)
    cells = plan(tmp_path / "demo", {"kd": [63.1]})
    assert read_results(tmp_path / "demo", cells, tmp_path / "shared")["teacher_top1"].tolist() == [88.0]


BROKEN = {
    "cut off": '{"status": "do',
    "empty": "",
    "no text": b"\xff\xfe\x00",
    "a list": "[]",
    "no status": "{}",
    "unknown status": '{"status": "fine", "top1_last": 1, "top1_best": 1}',
    "status of a wrong type": '{"status": ["done"]}',
    "done without a number": '{"status": "done"}',
    "null": '{"status": "done", "top1_last": null, "top1_best": 1}',
    "text": '{"status": "done", "top1_last": "63.1", "top1_best": 1}',
    "truth": '{"status": "done", "top1_last": true, "top1_best": 1}',
    "NaN": '{"status": "done", "top1_last": NaN, "top1_best": 1}',
    "infinite": '{"status": "done", "top1_last": 1e999, "top1_best": 1}',
    "over 100 %": '{"status": "done", "top1_last": 6310, "top1_best": 1}',
    "negative": '{"status": "done", "top1_last": -1, "top1_best": 1}',
    "half an epoch": '{"status": "done", "top1_last": 1, "top1_best": 1, "epochs": 2.5}',
    "huge": '{"status": "done", "top1_last": 1, "top1_best": 1, "epochs": ' + "9" * 30 + "}",
    "too long to read": '{"status": "done", "top1_last": ' + "9" * 5000 + "}",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_result_is_a_status_with_a_reason(tmp_path: Path, content: str | bytes) -> None:
    trial = tmp_path / "kd0"
    trial.mkdir()
    (trial / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (row,) = read_results(tmp_path, [Cell("kd", 0, "kd0")]).to_dict("records")
    assert row["status"] == "unreadable"
    assert row["reason"].startswith("result.json ") and "\n" not in row["reason"] and len(row["reason"]) < 200
    assert pd.isna(row["top1_last"])


@pytest.mark.parametrize(
    "spoil", [lambda trial: (trial / "result.json").mkdir(parents=True), lambda trial: trial.write_text("")]
)
def test_what_is_no_file_is_unreadable(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(tmp_path / "kd0")
    assert read_result(tmp_path / "kd0")["status"] == "unreadable"


def test_reasons_are_one_printable_line(tmp_path: Path) -> None:
    (tmp_path / "kd0").mkdir()
    (tmp_path / "kd0" / "result.json").write_text(json.dumps({"status": "failed", "reason": "a\n\x1b[31mb\ud800 c"}))
    assert read_result(tmp_path / "kd0")["reason"] == "a [31mb c"
    fail(tmp_path / "kd1", reason=None)
    assert read_result(tmp_path / "kd1")["reason"] == "no reason was recorded"


def test_time_of_a_thousand_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = plan(tmp_path / "demo", {f"method{i}": [60.0 + i / 1000] * 5 for i in range(200)})
    start = time.perf_counter()
    frame = read_results(tmp_path / "demo", cells)
    read = time.perf_counter()
    summary = summarise(frame, "method0")
    end = time.perf_counter()
    with capsys.disabled():
        print(f"\n1,000 trials: read in {read - start:.2f} s, summarised in {end - read:.2f} s")
    assert len(frame) == 1000 and len(summary.pairs[0].rows) == 201
