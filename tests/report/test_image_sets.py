"""A table never mixes numbers from different images, and says what it leaves out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kd_bench.report import csv_export
from kd_bench.report.image_sets import note_differences
from kd_bench.report.results_frame import read_results
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults, Summary
from tests.report.trials import Cell, plan, put, render_summary, trial_id

USUAL, OTHER = "a" * 32, "b" * 32


def images(digest: str, kind: str = "pixels") -> dict[str, str]:
    return {"digest": digest, "order": "c" * 32, "kind": kind}


def record(trial: Path, digest: str | None, kind: str = "pixels") -> None:
    """Writes the images into the result and the environment of a trial."""
    for name in ("result.json", "environment.json"):
        content = json.loads((trial / name).read_text())
        content.pop("images", None)
        (trial / name).write_text(json.dumps(content | ({"images": images(digest, kind)} if digest else {})))


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """Two methods and the teacher on the same images."""
    put(tmp_path / "teachers" / "t0", top1_last=97.2, epochs=40)
    planned = plan(tmp_path / "demo", {"kd": [60.0, 61.0, 62.0], "dkd": [62.0, 63.0, 90.0]})
    for cell in planned:
        record(tmp_path / "demo" / cell.trial_id, USUAL)
    record(tmp_path / "teachers" / trial_id("t0"), USUAL)
    return planned


def summary(folder: Path, planned: list[Cell]) -> Summary:
    return summarise(read_results(folder, planned))


def rows(table: Summary) -> dict[str, Any]:
    return {row.label: row for row in table.rows}


def test_the_same_images_change_nothing_but_the_line_on_the_dataset(tmp_path: Path, cells: list[Cell]) -> None:
    table = summary(tmp_path / "demo", cells)
    assert (
        table.footnotes[-1]
        == f"Dataset: digits, 30 epochs a trial, teachers: 40 epochs, digest of the images {USUAL[:16]}."
    )
    for cell in cells:
        record(tmp_path / "demo" / cell.trial_id, None)
    before = summary(tmp_path / "demo", cells)
    assert before.pairs == table.pairs
    assert before.footnotes == (*table.footnotes[:-1], "Dataset: digits, 30 epochs a trial, teachers: 40 epochs.")


def test_a_trial_of_other_images_enters_no_mean_and_is_named(tmp_path: Path, cells: list[Cell]) -> None:
    record(tmp_path / "demo" / trial_id("dkd2"), OTHER)
    table = summary(tmp_path / "demo", cells)
    dkd = rows(table)["dkd"]
    assert dkd.top1 == MeanAndStd(62.5, 0.5**0.5, 2)
    assert (dkd.planned, dkd.done, dkd.other_images, dkd.other, dkd.complete) == (3, 2, 1, 0, False)
    assert dkd.difference is not None and (dkd.difference.mean, dkd.difference.n) == (2.0, 2)
    assert dkd.note.startswith("2 of 3 (1 of other images)")
    assert "Incomplete: 5 of 6 planned trials done (1 of other images)." in table.footnotes
    left_out = (
        f"Left out: 1 trial of other images of digits than the others (digest {USUAL[:16]}): "
        f"{trial_id('dkd2')} ({OTHER[:16]})."
    )
    assert left_out in table.footnotes
    assert left_out in " ".join(render_summary(table, "markdown").split())
    [line] = [line for line in csv.DictReader(io.StringIO(render_summary(table, "csv"))) if line["label"] == "dkd"]
    assert (line["done"], line["other_images"], line["other_protocol"]) == ("2", "1", "0")


def test_a_whole_line_of_other_images_has_no_number(tmp_path: Path, cells: list[Cell]) -> None:
    cells += plan(tmp_path / "demo", {"crd": [50.0, 51.0, 52.0]})
    for cell in cells:
        record(tmp_path / "demo" / cell.trial_id, OTHER if cell.label == "kd" else USUAL)
    by_label = rows(summary(tmp_path / "demo", cells))
    assert (by_label["kd"].top1, by_label["kd"].other_images) == (None, 3)
    assert by_label["dkd"].top1.n == 3 and by_label["dkd"].difference is None


def test_a_teacher_of_other_images_has_no_number(tmp_path: Path, cells: list[Cell]) -> None:
    assert rows(summary(tmp_path / "demo", cells))["resnet20"].top1 == MeanAndStd(97.2, None, 1)
    record(tmp_path / "teachers" / trial_id("t0"), OTHER)
    table = summary(tmp_path / "demo", cells)
    teacher = rows(table)["resnet20"]
    assert (teacher.top1, teacher.best, teacher.other_images) == (None, None, 1)
    assert any(f": {trial_id('t0')} ({OTHER[:16]})." in note for note in table.footnotes)


def test_results_of_earlier_versions_are_shown_and_named(tmp_path: Path, cells: list[Cell]) -> None:
    for name in ("dkd1", "kd1"):
        record(tmp_path / "demo" / trial_id(name), None)
    table = summary(tmp_path / "demo", cells)
    assert rows(table)["dkd"].top1.n == 3 and rows(table)["kd"].top1.n == 3
    assert (
        "Not known to be of the same images of digits: 2 trials of an earlier version, which did not record them."
        in table.footnotes
    )


def test_digests_of_files_and_of_pixels_are_not_compared(tmp_path: Path, cells: list[Cell]) -> None:
    record(tmp_path / "demo" / trial_id("dkd2"), OTHER, "names and sizes")
    table = summary(tmp_path / "demo", cells)
    assert rows(table)["dkd"].top1.n == 3
    assert table.footnotes[-1].endswith(f"images {USUAL[:16]} or {OTHER[:16]}.")


def test_each_dataset_has_its_own(tmp_path: Path, cells: list[Cell]) -> None:
    others = plan(tmp_path / "demo", {"kd": [80.0], "dkd": [82.0]}, dataset="cifar10", teacher="wide")
    for cell in others:
        record(tmp_path / "demo" / cell.trial_id, OTHER)
    methods = [row for row in summary(tmp_path / "demo", [*cells, *others]).rows if row.kind == "method"]
    assert [(row.done, row.other_images) for row in methods] == [(3, 0), (3, 0), (1, 0), (1, 0)]


def test_the_csv_has_the_digest_of_each_trial(tmp_path: Path) -> None:
    from tests.report.test_protocol import cells as real_cells
    from tests.report.trials import write_trial

    planned = real_cells()
    for cell, digest in zip(planned, (USUAL, None), strict=False):
        write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
        record(put(tmp_path / "r" / cell.trial_id), digest)
    lines = list(csv.DictReader(io.StringIO(csv_export.trials([("r", tmp_path / "r", planned)]).text)))
    assert [(line["images"], line["images_kind"]) for line in lines[:2]] == [(USUAL, "pixels"), ("", "")]


def test_tables_of_one_page_say_that_they_have_other_images(tmp_path: Path) -> None:
    parts = []
    for name, digest in (("first", USUAL), ("second", OTHER), ("third", USUAL)):
        planned = plan(tmp_path / name, {"kd": [60.0], "dkd": [61.0]})
        for cell in planned:
            record(tmp_path / name / cell.trial_id, digest)
        frame = read_results(tmp_path / name, planned)
        parts.append(FolderResults(name, "", summarise(frame), frame, planned, tmp_path / name))  # type: ignore[arg-type]
    notes = [part.summary.footnotes for part in note_differences(parts)]
    sentence = "Not to be compared with {}: other images of digits (digest {}, here {})."
    expected = [("second", OTHER, USUAL), ("first, third", USUAL, OTHER), ("second", OTHER, USUAL)]
    for footnotes, part, (others, other_digest, part_digest) in zip(notes, parts, expected, strict=True):
        assert footnotes == (sentence.format(others, other_digest[:16], part_digest[:16]), *part.summary.footnotes)
    same = [parts[0], parts[2]]
    assert [part.summary for part in note_differences(same)] == [part.summary for part in same]
