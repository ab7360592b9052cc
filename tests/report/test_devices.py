"""Seconds of other devices than that of most of a pair are in no mean, and a footnote says so."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kd_bench.report import csv_export
from kd_bench.report.devices import device_of, leave_out_other_devices
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary
from tests.report.trials import Cell, put
from tests.trials.folders import ENVIRONMENT

H200 = {"device": "cuda:0", "device_name": "NVIDIA H200", "threads": 1, "cpu_capability": "AVX512"}
A100 = H200 | {"device_name": "NVIDIA A100-SXM4-40GB"}
CPU = {"device": "cpu", "device_name": "AMD EPYC", "threads": 1, "cpu_capability": "AVX2"}


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"device": "cpu", "threads": 1}, None),  # as of early versions
        ({"device_name": "AMD EPYC"}, "AMD EPYC"),
        (CPU, "AMD EPYC (AVX2), 1 thread"),
        (CPU | {"threads": 4}, "AMD EPYC (AVX2), 4 threads"),
        (H200, "NVIDIA H200"),
        (H200 | {"processes": 8}, "8 x NVIDIA H200"),
        (H200 | {"processes": 1}, "NVIDIA H200"),
        (H200 | {"earlier": [H200, H200]}, "NVIDIA H200"),
        (H200 | {"earlier": [A100, H200]}, "NVIDIA A100-SXM4-40GB and NVIDIA H200"),
        (H200 | {"earlier": [None, {"device": "cuda"}, 3]}, "NVIDIA H200"),  # changed by hand
        (CPU | {"threads": "many", "processes": None, "cpu_capability": None}, "AMD EPYC"),
    ],
)
def test_the_name_of_a_device(environment: Mapping[str, Any], name: str | None) -> None:
    assert device_of(environment) == name


def finish(folder: Path, device: Mapping[str, Any], seconds: float, cells: list[Cell]) -> None:
    for cell in cells:
        trial = put(folder / name_of(cell), seconds_per_epoch=seconds)
        (trial / "environment.json").write_text(json.dumps(ENVIRONMENT | device))


def name_of(cell: Cell) -> str:
    return f"{cell.label}-{cell.seed}-{cell.student}"


def cells(label: str, student: str = "resnet8", seeds: Sequence[int] = range(3)) -> list[Cell]:
    return [Cell(label, seed, f"{label}-{seed}-{student}", student=student) for seed in seeds]


def seconds(summary: Summary) -> dict[str, float | None]:
    return {row.label: row.seconds for row in summary.rows if row.kind != "teacher"}


def notes(summary: Summary) -> list[str]:
    return [note for note in summary.footnotes if note.startswith("Other devices")]


def test_nothing_changes_on_one_device(tmp_path: Path) -> None:
    planned = [*cells("kd"), *cells("dkd")]
    finish(tmp_path, H200, 2.0, planned[:4])
    put(tmp_path / name_of(planned[4]), seconds_per_epoch=8.0)  # which device is not known
    frame = read_results(tmp_path, planned)
    assert leave_out_other_devices(frame) is frame
    assert seconds(summarise(frame)) == {"kd": 2.0, "dkd": 5.0} and not notes(summarise(frame))
    assert frame["device"].tolist()[:4] == ["NVIDIA H200"] * 4 and frame["device"].isna().sum() == 2


def test_seconds_of_other_devices_are_in_no_mean(tmp_path: Path) -> None:
    planned = [*cells("kd"), *cells("dkd"), *cells("dist")]
    finish(tmp_path, H200, 2.0, planned[:5])
    finish(tmp_path, CPU, 90.0, planned[5:6])
    finish(tmp_path, A100, 4.0, planned[6:])
    summary = summarise(read_results(tmp_path, planned))
    assert seconds(summary) == {"kd": 2.0, "dkd": 2.0, "dist": 4.0}
    assert all(row.top1 and row.top1.n == 3 for row in summary.rows if row.kind != "teacher")
    assert notes(summary) == [
        "Other devices: seconds an epoch are those of NVIDIA H200; left out of means: dkd (1 trial on AMD EPYC (AVX2), "
        "1 thread); not to be compared with the other rows' seconds: dist (3 trials on NVIDIA A100-SXM4-40GB)."
    ]


def test_each_pair_has_its_own_device(tmp_path: Path) -> None:
    first, second, third = ([*cells("kd", name), *cells("dkd", name)] for name in ("resnet8", "resnet14", "resnet20"))
    finish(tmp_path, H200, 2.0, first)
    finish(tmp_path, A100, 4.0, second)
    finish(tmp_path, A100, 6.0, third[:4])
    finish(tmp_path, H200, 3.0, third[4:])
    summary = summarise(read_results(tmp_path, [*first, *second, *third]))
    by_pair = {pair.student: [row.seconds for row in pair.rows[1:]] for pair in summary.pairs}
    assert by_pair == {"resnet8": [2.0, 2.0], "resnet14": [4.0, 4.0], "resnet20": [6.0, 6.0]}
    assert notes(summary) == [
        "Other devices (resnet20 → resnet20): seconds an epoch are those of NVIDIA A100-SXM4-40GB; left out of means: "
        "dkd (2 trials on NVIDIA H200)."
    ]


def test_only_finished_trials_have_a_device_and_long_lists_are_cut(tmp_path: Path) -> None:
    labels = [f"row{number}" for number in range(7)]
    planned = [*cells("kd"), *(cell for label in labels for cell in cells(label)[:1])]
    finish(tmp_path, H200, 2.0, planned[:3])
    planned += cells("kd", seeds=range(3, 9))  # more than any device has, and not done
    finish(tmp_path, A100, 4.0, planned[3:5])
    for cell in planned[10:]:
        failed = put(tmp_path / name_of(cell), status="failed", reason="the loss is nan")
        (failed / "environment.json").write_text(json.dumps(ENVIRONMENT | A100))
    summary = summarise(read_results(tmp_path, planned))
    assert seconds(summary)["kd"] == 2.0 and seconds(summary)["row0"] == 4.0
    [note] = notes(summary)
    assert "left out" not in note and "row0 (1 trial on NVIDIA A100-SXM4-40GB), row1 (1 trial" in note
    finish(tmp_path, A100, 4.0, planned[5:9])
    finish(tmp_path, H200, 2.0, planned[10:14])
    [note] = notes(summarise(read_results(tmp_path, planned)))
    assert "row4 (1 trial on NVIDIA A100-SXM4-40GB) and 1 more." in note


def test_the_csv_file_names_the_device(tmp_path: Path) -> None:
    assert csv_export.RESULTS[-1] == "device"
    planned = cells("kd")
    finish(tmp_path, CPU | {"device_name": "AMD\nEPYC\x1b[31m"}, 2.0, planned)
    frame = read_results(tmp_path, planned)
    assert set(frame["device"]) == {"AMD EPYC [31m (AVX2), 1 thread"}
