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


#: What stands in ``result.json``, or a pair of what it takes the place of and what stands there.
BROKEN: dict[str, str | bytes | tuple[str, str]] = {
    "cut off": '{"status": "do',
    "empty": "",
    "no text": b"\xff\xfe\x00",
    "a list": "[]",
    "null": "null",
    "no status": "{}",
    "unknown status": ('"done"', '"fine"'),
    "status of a wrong type": ('"done"', '["done"]'),
    "done without a number": '{"status": "done"}',
    "no best epoch's number": ('"top1_best": 61.0, ', ""),
    "no number": ("60.0", "null"),
    "text": ("60.0", '"60.0"'),
    "truth": ("60.0", "true"),
    "NaN": ("60.0", "NaN"),
    "infinite": ("60.0", "1e999"),
    "over 100 %": ("60.0", "150"),
    "negative": ("60.0", "-1"),
    "another number": ("60.0", "60.5"),
    "another best number": ("61.0", "61.5"),
    "another best epoch": ('"best_epoch": 27', '"best_epoch": 26'),
    "half an epoch": ('"epochs": 30', '"epochs": 30.5'),
    "another number of epochs": ('"epochs": 30', '"epochs": 31'),
    "huge": ("78042", "9" * 30),
    "too long to read": ("78042", "9" * 5000),
    "half a character": ('"finished": "', '"finished": "\\ud800'),
    "no checksum": ('"weights_sha256": "', '"weights_sha256": "x'),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_result_is_a_status_with_a_reason(tmp_path: Path, content: str | bytes | tuple[str, str]) -> None:
    file = put(tmp_path / "kd0") / "result.json"
    if isinstance(content, tuple):
        assert content[0] in file.read_text()
        content = file.read_text().replace(content[0], content[1], 1)
    cells = [Cell("kd", 0, "kd0")]
    assert read_results(tmp_path, cells)["status"].tolist() == ["done"]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (row,) = read_results(tmp_path, cells).to_dict("records")
    assert row["status"] == "damaged"
    assert row["reason"].startswith(("result.json is damaged: ", "metrics.csv is damaged: it ends with"))
    assert "\n" not in row["reason"] and len(row["reason"]) < 200
    assert pd.isna(row["top1_last"]) and pd.isna(row["seconds_per_epoch"])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda trial: (trial / "result.json").mkdir(parents=True), "result.json is a folder, not a regular file"),
        (lambda trial: trial.write_text(""), "the folder is a file, not a folder"),
        (lambda trial: trial.symlink_to(trial), "the folder is a link that leads to no folder"),
    ],
)
def test_what_is_no_file_is_damaged(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(tmp_path / "kd0")
    assert read_result(tmp_path / "kd0") == {"status": "damaged", "reason": reason}


def test_reasons_are_one_printable_line(tmp_path: Path) -> None:
    assert read_result(fail(tmp_path / "kd0", "a\n\x1b[31mb\u2028 c"))["reason"] == "a [31mb c"
    assert read_result(fail(tmp_path / "kd1", reason=None))["reason"] == "no reason was recorded"


@pytest.mark.parametrize("content", ['{"reason": "out of\\n memory"}', "[", "{}"])
def test_a_trial_that_could_not_be_trained_has_failed(tmp_path: Path, content: str) -> None:
    cells = plan(tmp_path / "demo", {"kd": [60.0]})
    folder = tmp_path / "demo" / cells[0].trial_id
    (folder / "result.json").unlink()
    (folder / "failure.json").write_text(content)
    (row,) = read_results(tmp_path / "demo", cells).to_dict("records")
    if "reason" in content:
        assert (row["status"], row["reason"]) == ("failed", "out of memory; the next run tries again")
    else:
        assert row["status"] == "missing"


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
