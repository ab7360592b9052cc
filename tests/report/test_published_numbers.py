"""Published numbers: the files, and the columns beside measured ones."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher
from kd_bench.models import cards
from kd_bench.plan import plan
from kd_bench.report import published_numbers
from kd_bench.report.results_frame import read_results
from kd_bench.report.statistics import MeanAndStd, mean_interval
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary, SummaryRow
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path
from tests.report.trials import put, render_summary, write_trial

NUMBERS = published_numbers.read("cifar100_pairs", "test")
PAIR = ("cifar_resnet50", "cifar_mobilenet_v2")
RECIPE: dict[str, Any] = {
    "name": "r",
    "extends": "cifar100/base.yaml",
    "pairs": [
        {
            "teacher": "resnet50",
            "student": "mobilenet_v2",
            "training": {"optimizer": {"lr": 0.01}},
            "methods": {"dkd": {"beta": 8}},
        }
    ],
    "methods": ["none", "kd", "dkd", "rkd"],
}


def cells(*overrides: str, **changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes, overrides), "r")


def measured(out: Path, planned: list[PlannedTrial], **accuracies: list[float]) -> Summary:
    """A table of these accuracies, one a seed, with a teacher of 79.00 %."""
    for cell in planned:
        if cell.label in accuracies and cell.seed < len(accuracies[cell.label]):
            folder = out / "r" / cell.trial_id
            write_trial(folder, cell.trial)
            put(folder, top1_last=accuracies[cell.label][cell.seed], top1_best=99.0)
        if cell.taught_by is not None:
            write_trial(out / "teachers" / str(cell.teacher_id), cell.taught_by)
            put(out / "teachers" / str(cell.teacher_id), top1_last=79.0, top1_best=99.0)
    return summarise(read_results(out / "r", planned))


def rows(summary: Summary) -> dict[str, SummaryRow]:
    return {row.label if row.kind != "teacher" else "teacher": row for row in summary.pairs[0].rows}


def notes(summary: Summary, start: str) -> list[str]:
    return [note for note in summary.footnotes if note.startswith(start)]


# --- the files ---


def test_every_number_has_a_source_and_every_source_a_number() -> None:
    used = {number.source for numbers in NUMBERS.cells.values() for number in numbers}
    assert used == set(NUMBERS.file.sources)
    with package_path("results", "published", "cifar100_pairs.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == sum(map(len, NUMBERS.cells.values()))
    for line in lines:
        assert line["dataset"] == "cifar100" and line["source"]
        assert bool(line["teacher"]) == (line["method"] != "none")
        assert bool(line["student"]) == (line["method"] != "teacher")
        assert 50 < float(line["top1"]) < 80


def test_table_6_is_in_it_word_for_word() -> None:
    with package_path("results", "published", "table6.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 5 * 8
    for line in lines:
        for key, value in {
            ("cifar100", line["teacher"], line["student"], line["method"]): line["top1"],
            ("cifar100", line["teacher"], "", "teacher"): line["teacher_top1"],
            ("cifar100", "", line["student"], "none"): line["student_top1"],
        }.items():
            primary = NUMBERS.cells[published_numbers.PublishedCell(*key)][0]
            assert (primary.top1, primary.source) == (float(value), "ikl_table6")
        std = NUMBERS.cells[
            published_numbers.PublishedCell("cifar100", line["teacher"], line["student"], line["method"])
        ][0].std
        assert std == (float(line["std"]) if line["std"] else None)


def test_the_copied_rows_of_table_6_are_those_of_their_sources() -> None:
    for cell, numbers in NUMBERS.cells.items():
        by_source = {number.source: number.top1 for number in numbers}
        if cell.method in {"fitnet", "rkd", "crd", "kd"}:
            assert by_source.get("ikl_table6", by_source["repdistiller"]) == by_source["repdistiller"], cell
        if cell.method == "dkd" and "ikl_table6" in by_source:
            assert by_source["ikl_table6"] == by_source["mdistiller"]


def test_all_pairs_have_the_classical_methods() -> None:
    pairs = {(cell.teacher, cell.student) for cell in NUMBERS.cells if cell.teacher and cell.student}
    assert len(pairs) == 13
    for pair in pairs:
        assert all(
            published_numbers.PublishedCell("cifar100", *pair, method) in NUMBERS.cells
            for method in ("fitnet", "rkd", "crd", "kd")
        )


def test_cards_and_table_agree() -> None:
    for teacher, student in cards.published_pairs("cifar100"):
        assert {accuracy.value for accuracy in teacher.top1} == {
            number.top1
            for number in NUMBERS.cells[published_numbers.PublishedCell("cifar100", teacher.name, "", "teacher")]
        }
        assert (
            student.top1[0].value
            == NUMBERS.cells[published_numbers.PublishedCell("cifar100", "", student.name, "none")][0].top1
        )
        kd = next(entry.kd for entry in student.teachers if entry.teacher == teacher.name)
        assert (
            kd == NUMBERS.cells[published_numbers.PublishedCell("cifar100", teacher.name, student.name, "kd")][0].top1
        )


def test_sources_that_disagree_are_both_there() -> None:
    numbers = NUMBERS.cells[published_numbers.PublishedCell("cifar100", "wrn_40_2", "wrn_16_2", "dkd")]
    assert [(number.top1, number.source) for number in numbers] == [
        (76.23, "mdistiller"),
        (76.24, "ttm"),
        (76.24, "ls"),
    ]


# --- the columns ---


def test_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    planned = cells()
    before = measured(tmp_path, planned, none=[64.0, 64.6, 65.2], kd=[67.0, 67.2, 67.4], dkd=[70.0])
    after = published_numbers.compare(before, planned, NUMBERS)
    by_label = rows(after)
    # mean 64.6; std 0.6; t(2) * 0.6 / sqrt(3) = 1.49
    assert by_label["none"].published == published_numbers.Published(
        64.60, None, "ikl_table6", "a", pytest.approx(0, abs=1e-9), True
    )
    # mean 67.2, std 0.2: the interval is 67.2 -+ 0.497, and 67.35 lies in it
    kd = by_label["kd"].published
    assert kd is not None and kd.difference == pytest.approx(-0.15) and kd.inside is True
    # the best epochs are 99.0: they alone are compared with a published best epoch
    dkd = by_label["dkd"].published_best
    assert dkd is not None and dkd.difference == pytest.approx(99.0 - 70.35) and dkd.inside is None
    assert by_label["dkd"].published is None and kd.reports == "last" and dkd.reports == "best"
    rkd = by_label["rkd"].published
    assert rkd is not None and (rkd.top1, rkd.difference, rkd.inside) == (64.43, None, None)
    teacher = by_label["teacher"].published
    assert teacher is not None and (teacher.top1, teacher.difference) == (79.34, pytest.approx(-0.34))
    # nothing measured has changed
    for old, new in zip(before.pairs[0].rows, after.pairs[0].rows, strict=True):
        assert (old.top1, old.best, old.difference, old.note) == (new.top1, new.best, new.difference, new.note)
    assert "(a) ikl_table6, Table 6 of the IKL paper's appendix" in notes(after, "Published, and")[0]
    (other,) = notes(after, "Published otherwise")
    assert other.startswith("Published otherwise by nd, ND README") and "67.65" in other
    assert not notes(after, "No comparison")


def test_outside_of_the_interval(tmp_path: Path) -> None:
    planned = cells()
    published = rows(published_numbers.compare(measured(tmp_path, planned, kd=[68.0, 68.1, 68.2]), planned, NUMBERS))[
        "kd"
    ].published
    assert published is not None and published.inside is False and published.difference == pytest.approx(0.75)


def test_the_interval_of_a_mean() -> None:
    assert mean_interval(MeanAndStd(1.0, None, 1)) is None
    low, high = mean_interval(MeanAndStd(10.0, 0.6, 3)) or (0, 0)
    assert (low, high) == (pytest.approx(10 - 4.302652729911275 * 0.6 / math.sqrt(3)), pytest.approx(20 - low))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["epochs=2"], "epochs 2 instead of 240, schedule.milestones [1, 2] instead of [150, 180, 210]"),
        (["dataset.classes=20"], "dataset.classes 20 instead of none"),
        (["dataset.train_images=256"], "dataset.train_images 256 instead of none"),
        (["dataset.labels=coarse"], "dataset.labels coarse instead of fine"),
        (["optimizer.momentum=0.8"], "optimizer.momentum 0.8 instead of 0.9"),
        (["augment.autoaugment=true"], "augment.autoaugment True instead of none"),
        (["input.size=64"], "with input (size 64, normalise dataset)"),
    ],
)  # fmt: skip
def test_another_protocol_is_never_compared(tmp_path: Path, overrides: list[str], reason: str) -> None:
    planned = cells(*overrides)
    after = published_numbers.compare(measured(tmp_path, planned, none=[64.0, 65.0], kd=[67.0, 67.2]), planned, NUMBERS)
    assert all(row.published is None for row in after.pairs[0].rows)
    refused = notes(after, "No comparison")
    assert any(reason in note for note in refused), refused
    for format in ("terminal", "plain", "markdown", "latex"):
        text = render_summary(after, format)
        assert "minus published" not in text and "No comparison" in text


def test_another_learning_rate_of_a_pair(tmp_path: Path) -> None:
    pair = RECIPE["pairs"][0] | {"training": {}}
    planned = cells(pairs=[pair])
    after = published_numbers.compare(measured(tmp_path, planned, kd=[67.0]), planned, NUMBERS)
    assert rows(after)["kd"].published is None and rows(after)["teacher"].published is not None
    assert "optimizer.lr 0.05 instead of 0.01" in notes(after, "No comparison of none, kd, dkd, rkd")[0]


def test_other_hyper_parameters_only_keep_their_own_row_from_it(tmp_path: Path) -> None:
    planned = cells(methods={"kd": {}, "kd_2": {"method": "kd", "temperature": 2}, "dkd": {"alpha": 2}})
    after = published_numbers.compare(measured(tmp_path, planned), planned, NUMBERS)
    shown = {label for label, row in rows(after).items() if row.published}
    assert shown == {"teacher", "kd"}
    assert notes(after, "No comparison") == [
        "No comparison of kd_2 with published numbers (cifar100_pairs): temperature 2 instead of 4.",
        "No comparison of dkd with published numbers (cifar100_pairs): alpha 2 instead of 1.",
    ]


def test_a_row_counts_by_its_method_not_by_its_name(tmp_path: Path) -> None:
    pair = RECIPE["pairs"][0] | {"methods": {}}
    planned = cells(methods={"hinton": {"method": "kd"}, "kd": {"method": "dkd"}}, pairs=[pair])
    by_label = rows(published_numbers.compare(measured(tmp_path, planned), planned, NUMBERS))
    assert by_label["hinton"].published is not None and by_label["hinton"].published.top1 == 67.35
    assert by_label["kd"].published_best is not None and by_label["kd"].published_best.top1 == 70.35


def test_a_teacher_that_was_trained_otherwise(tmp_path: Path) -> None:
    planned = cells("teacher_training.epochs=100")
    after = published_numbers.compare(measured(tmp_path, planned, none=[64.0], kd=[67.0]), planned, NUMBERS)
    assert {label for label, row in rows(after).items() if row.published} == {"none"}
    assert "teacher's epochs 100 instead of 240" in notes(after, "No comparison of teacher, kd, dkd, rkd")[0]


@pytest.mark.parametrize(("top1", "compared"), [(79.1, True), (63.5, False)])
def test_a_given_teacher_must_be_as_good_as_the_published_one(tmp_path: Path, top1: float, compared: bool) -> None:
    planned = []
    for cell in cells():
        assert cell.taught_by is not None
        given = PretrainedTeacher(dataset=cell.taught_by.dataset, model=cell.taught_by.model, weights="0" * 64)
        trial = cell.trial.model_copy(update={"teacher": given}) if cell.trial.teacher else cell.trial
        planned.append(PlannedTrial(trial, cell.label, given))
        write_trial(tmp_path / "teachers" / given.id, given)
        put(tmp_path / "teachers" / given.id, top1_last=top1, top1_best=top1)
    after = published_numbers.compare(summarise(read_results(tmp_path / "r", planned)), planned, NUMBERS)
    assert (rows(after)["kd"].published is not None) == compared
    assert rows(after)["teacher"].published is not None
    refused = "No comparison of kd, dkd, rkd with published numbers (cifar100_pairs): a given teacher of 63.50 %"
    assert bool(notes(after, refused)) != compared


def test_networks_and_data_sets_of_other_people_are_not_mistaken(tmp_path: Path) -> None:
    digits = {"name": "r", "dataset": "digits", "methods": ["kd"], "pairs": [{"teacher": "vgg13", "student": "vgg8"}]}
    planned = plan(read_recipe(digits), "r")
    before = summarise(read_results(tmp_path, planned))
    assert published_numbers.compare(before, planned, NUMBERS) == before
    planned = cells(pairs=[{"teacher": "resnet20", "student": "mobilenetv3_small_050"}])
    before = summarise(read_results(tmp_path, planned))
    assert published_numbers.compare(before, planned, NUMBERS) == before


def test_a_network_trained_alone_is_compared_with_the_published_teacher(tmp_path: Path) -> None:
    planned = cells(pairs=[{"teacher": None, "student": "resnet56"}], methods=["none"])
    (row,) = published_numbers.compare(summarise(read_results(tmp_path, planned)), planned, NUMBERS).pairs[0].rows
    assert row.published is not None and (row.published.top1, row.published.source) == (72.34, "repdistiller")


# --- the formats ---


def test_every_format_has_it(tmp_path: Path) -> None:
    planned = cells()
    summary = published_numbers.compare(
        measured(tmp_path, planned, kd=[67.0, 67.2, 67.4], dkd=[70.0]), planned, NUMBERS
    )
    for format in ("terminal", "plain"):
        (line,) = [
            line for line in render_summary(summary, format, width=130).splitlines() if line.strip().startswith("kd ")
        ]
        assert line.split()[:10] == "kd 67.20 ± 0.20 (3) 67.35 (a) -0.15 (inside) –".split()  # noqa: SIM905
    assert "| 67.35 (a)" in render_summary(summary, "markdown") and "| -0.15 (inside)" in render_summary(
        summary, "markdown"
    )
    assert r"& 67.35 (a) & $-$0.15 (inside) &" in render_summary(summary, "latex-long")
    assert r"Published & teacher & 79.34 {\scriptsize (a)} \\" in render_summary(summary, "latex")
    back = pd.read_csv(io.StringIO(render_summary(summary, "csv"))).set_index("label")
    assert back.loc["kd", "published"] == 67.35 and back.loc["kd", "published_source"] == "ikl_table6"
    assert (
        back.loc["kd", "minus_published"] == pytest.approx(-0.15) and bool(back.loc["kd", "published_inside"]) is True
    )
    assert pd.isna(back.loc["dkd", "published_inside"]) and pd.isna(back.loc["rkd", "minus_published"])
    assert render_summary(summary, "terminal", ascii_only=True).isascii()


def test_without_anything_published_nothing_is_shown(tmp_path: Path) -> None:
    text = render_summary(measured(tmp_path, cells(), kd=[67.0]), "terminal")
    assert "published" not in text


def test_a_heading_is_in_every_format(tmp_path: Path) -> None:
    summary = measured(tmp_path, cells(), kd=[67.0]).with_remark("smoke run", "It measures nothing.")
    for format in ("terminal", "plain", "markdown", "latex", "csv"):
        assert "smoke run" in render_summary(summary, format)
    assert summary.footnotes[0] == "It measures nothing."


# --- bad files ---


def test_names_and_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="r: published: no file of published numbers is called 'cifar100_pair'; did you"
    ):
        published_numbers.read("cifar100_pair", "r: published")
    folder = package_path("results", "published")
    good = yaml.safe_load((folder / "cifar100_pairs.yaml").read_text())
    lines = (folder / "cifar100_pairs.csv").read_text().splitlines()
    (tmp_path / "cifar100_base.yaml").write_text((folder / "cifar100_base.yaml").read_text())
    for change, table, expected in (
        ({}, [lines[0], "cifar100,a,b,kd,abc,,,ls"], "line 2: top1: 'abc' is no percentage"),
        ({}, [lines[0], "cifar100,a,b,kd,170,,,ls"], "line 2: top1: '170' is no percentage"),
        ({}, [lines[0], "cifar100,a,b,kd,70,,x,ls"], "line 2: runs: 'x' is no number of runs"),
        ({}, [lines[0], "cifar100,a,b,kd,70,,0,ls"], "line 2: runs: '0' is no number of runs"),
        ({}, [lines[0], "cifar100,a,b,kd,70,,,lss"], "line 2: no source is called 'lss'; did you mean 'ls'"),
        ({}, [lines[0], lines[1], lines[1]], "line 3: repeats a number of an earlier line"),
        ({}, [lines[0], "cifar100,a"], "line 2: should have 8 values"),
        ({"extends": 3}, lines, "extends: should be the name of a file beside it (it is 3)"),
        ({"extends": "none.yaml"}, lines, "none.yaml"),
        ({}, ["a,b"], "should have the columns dataset, teacher"),
        ({"numbers": "none.csv"}, lines, "none.csv: cannot be read"),
        ({"sources": {"ls": {"title": "x", "reports": "first"}}}, lines, "'first' is none of"),
        ({}, [lines[0], f"cifar100,a,b,{'k' * 200_000},70,,,ls"], "cannot be read: field larger than field limit"),
        ({"methods": {"kd": {"training": 5}}}, lines, "methods.kd: training should have settings"),
        ({"methods": {"kd": {"training": {"optimizer": "sgd"}}}}, lines, "methods.kd: optimizer should have settings"),
        ({"protocol": {"dataset": "cifar100"}}, lines, "protocol: dataset should have settings"),
    ):
        (tmp_path / "cifar100_pairs.csv").write_text("\n".join(table) + "\n")
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(good | change))
        with pytest.raises(UserError) as caught:
            published_numbers.read(str(file), "r: published")
        assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_a_spreadsheet_wrote(tmp_path: Path) -> None:
    """With a byte order mark, and with a learning rate of a network beside a protocol that names no optimiser."""
    content = {
        "numbers": "mine.csv",
        "prefix": "cifar_",
        "protocol": {"dataset": {"name": "cifar100"}},
        "learning_rates": {"mobilenet_v2": 0.1},
        "teacher_tolerance": 1.0,
        "methods": {"kd": {}},
        "sources": {"mine": {"title": "Mine", "reports": "last"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    lines = "dataset,teacher,student,method,top1,std,runs,source\r\ncifar100,resnet50,mobilenet_v2,kd,67,,,mine\r\n"
    (tmp_path / "mine.csv").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    numbers = published_numbers.read(str(tmp_path / "mine.yaml"), "r: published")
    planned = cells()
    summary = published_numbers.compare(measured(tmp_path, planned, kd=[67.0]), planned, numbers)
    assert any(note.startswith("No comparison with published numbers (mine): ") for note in summary.footnotes)
    assert "optimizer.lr 0.01 instead of 0.1" in published_numbers.training_differences(planned[0].trial, numbers)


def test_more_sources_than_letters() -> None:
    marks = [published_numbers._letter(number) for number in range(120)]
    assert marks[:2] == ["a", "b"] and marks[51:53] == ["Z", "aa"] and len(set(marks)) == 120
