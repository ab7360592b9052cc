"""Published numbers beyond Table 6: what the files say, and that no number stands beside trials of another protocol."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.report import published_numbers
from kd_bench.report.published_numbers import PublishedCell, PublishedNumbers
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary, SummaryRow
from kd_bench.utils.paths import package_path
from tests.report.trials import put, render_summary, write_trial

CIFAR = read_recipe("cifar100/table6").published_names()
FILES = {name: published_numbers.read(name, "test") for name in (*CIFAR, "imagenet_second_wave")}

#: A sample, typed from the publications: file, pair, row, source, accuracy, runs, epoch.
SAMPLE = [
    ("cifar100_last_epoch", "resnet56", "resnet20", "at", "repdistiller", 70.55, 5, "last"),
    ("cifar100_last_epoch", "vgg13", "mobilenet_v2", "nst", "repdistiller", 58.16, 3, "last"),
    ("cifar100_last_epoch", "resnet50", "vgg8", "vid", "repdistiller", 70.30, 3, "last"),
    ("cifar100_last_epoch", "resnet32x4", "shufflenet_v1", "itrd", "itrd", 76.69, None, "last"),
    ("cifar100_last_epoch", "resnet32x4", "resnet8x4", "kd+ls", "ls_logs", 76.28, 1, "last"),
    ("cifar100_last_epoch", "resnet32x4", "shufflenet_v2", "ctkd+ls", "ls_logs_second", 76.56, 1, "last"),
    ("cifar100_best_epoch", "resnet32x4", "resnet8x4", "kd+ls", "ls", 76.62, None, "best"),
    ("cifar100_best_epoch", "resnet32x4", "resnet8x4", "kd+ls", "ls_logs", 76.66, 1, "best"),
    ("cifar100_best_epoch", "vgg13", "vgg8", "kd+dot", "mdistiller", 73.77, None, "best"),
    ("cifar100_best_epoch", "resnet50", "vgg8", "sd-dkd", "sdd", 75.86, None, "best"),
    ("cifar100_best_epoch", "vgg13", "vgg8", "sd-kd", "sdd_script", 73.54, 1, "best"),
    ("cifar100_best_epoch", "resnet32x4", "resnet8x4", "kd(ce1+kd1)", "simkd", 74.42, None, "best"),
    ("cifar100_epoch_not_stated", "wrn_40_2", "wrn_40_1", "wttm", "ttm", 74.58, None, "unknown"),
    ("cifar100_epoch_not_stated", "resnet110", "resnet32", "ctkd", "ctkd", 73.52, None, "unknown"),
    ("cifar100_epoch_not_stated", "resnet32x4", "resnet8x4", "rld", "notes_rld", 76.64, 3, "unknown"),
    ("cifar100_more_epochs", "resnet32x4", "shufflenet_v2", "mlkd+ls", "ls_logs_960_last", 77.89, 1, "last"),
    ("cifar100_more_epochs", "vgg13", "mobilenet_v2", "mlkd", "ls_baselines_480", 70.57, None, "best"),
    ("cifar100_extra_layers", "resnet32x4", "resnet8x4", "simkd(f=2)", "simkd", 78.08, None, "best"),
    ("cifar100_extra_layers", "vgg13", "vgg8", "norm+kd", "norm", 74.46, None, "unknown"),
    ("imagenet_second_wave", "resnet34.tv_in1k", "resnet18", "kd+dot", "mdistiller", 71.72, None, "best"),
]


@pytest.mark.parametrize(("name", "teacher", "student", "method", "source", "top1", "runs", "epoch"), SAMPLE)
def test_numbers_are_those_of_the_publications(
    name: str, teacher: str, student: str, method: str, source: str, top1: float, runs: int | None, epoch: str
) -> None:
    numbers = FILES[name]
    cell = PublishedCell("imagenet" if name.startswith("imagenet") else "cifar100", teacher, student, method)
    (number,) = [number for number in numbers.cells[cell] if number.source == source]
    assert (number.top1, number.runs, numbers.reports(cell, number)) == (top1, runs, epoch)


def test_every_file_has_its_numbers() -> None:
    counts = {name: sum(map(len, numbers.cells.values())) for name, numbers in FILES.items()}
    assert counts == {
        "cifar100_pairs": 246,
        "cifar100_last_epoch": 168,
        "cifar100_best_epoch": 156,
        "cifar100_epoch_not_stated": 177,
        "cifar100_more_epochs": 52,
        "cifar100_extra_layers": 55,
        "imagenet_second_wave": 80,
    }
    for name, numbers in FILES.items():
        used = {number.source for cell_numbers in numbers.cells.values() for number in cell_numbers}
        assert used == set(numbers.file.sources), name
        with package_path("results", "published", f"{name}.csv").open(encoding="utf-8") as stream:
            assert all(55 < float(line["top1"]) < 89 and line["source"] for line in csv.DictReader(stream))


def test_the_files_keep_what_their_names_say() -> None:
    def epochs(name: str) -> set[str]:
        numbers = FILES[name]
        return {
            numbers.reports(cell, number)
            for cell, cell_numbers in numbers.cells.items()
            for number in cell_numbers
            if numbers.file.sources[number.source].is_comparable
        }

    assert epochs("cifar100_last_epoch") == {"last"} and epochs("cifar100_best_epoch") == {"best"}
    assert epochs("cifar100_epoch_not_stated") == {"unknown"}
    sources = FILES["cifar100_extra_layers"].file.sources
    assert all(source.extra_layers for source in sources.values())
    assert all((source.protocol or {})["epochs"] in (480, 960) for source in FILES[CIFAR[4]].file.sources.values())


# --- the columns ---

RECIPE: dict[str, Any] = {
    "name": "r",
    "extends": "cifar100/base.yaml",
    "trials": 2,
    "pairs": [{"teacher": "resnet32x4", "student": "resnet8x4"}],
    "methods": {
        "none": {},
        "kd": {},
        "at": {},
        "dkd": {},
        "dist": {},
        "rld": {},
        "ttm": {},
        "kd_ls": {"method": "kd", "standardise": True, "kd_weight": 9, "temperature": 2},
        "kd_1_1": {"method": "kd", "ce_weight": 1, "kd_weight": 1},
        "kd_dot": {"method": "kd", "training": {"optimizer": {"name": "dot"}}},
    },
}


def cells(*overrides: str, **changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes, overrides), "r")


def compared(out: Path, planned: list[PlannedTrial], *names: str) -> Summary:
    """The table of trials with 70 and 71 % after the last epoch, 75 and 76 % in the best, and a teacher of 79 %."""
    for cell in planned:
        write_trial(out / "r" / cell.trial_id, cell.trial)
        put(out / "r" / cell.trial_id, top1_last=70.0 + cell.seed, top1_best=75.0 + cell.seed)
        assert cell.taught_by is not None
        write_trial(out / "teachers" / str(cell.teacher_id), cell.taught_by)
        put(out / "teachers" / str(cell.teacher_id), top1_last=79.0, top1_best=79.5)
    numbers = [FILES[name] for name in names or CIFAR]
    return published_numbers.compare(summarise(read_results(out / "r", planned)), planned, *numbers)


def rows(summary: Summary) -> dict[str, SummaryRow]:
    return {row.label: row for row in summary.pairs[0].rows if row.kind != "teacher"}


def value(row: SummaryRow) -> tuple[Any, Any]:
    return tuple((number.top1, number.source) if number else None for number in (row.published, row.published_best))  # type: ignore[return-value]


def test_each_number_stands_beside_its_own_epoch(tmp_path: Path) -> None:
    by_label = rows(compared(tmp_path, cells()))
    assert {label: value(row) for label, row in by_label.items()} == {
        "none": ((72.50, "repdistiller"), None),
        "kd": ((73.33, "repdistiller"), None),
        "at": ((73.44, "repdistiller"), None),
        "dkd": (None, (76.32, "mdistiller")),
        "dist": ((76.31, "dist_kd"), None),
        "rld": (None, None),  # only read in notes about the paper
        "ttm": ((76.17, "ttm"), None),
        "kd_ls": ((76.28, "ls_logs"), (76.62, "ls")),
        "kd_1_1": (None, (74.42, "simkd")),
        "kd_dot": (None, (75.12, "mdistiller")),
    }
    last, best = by_label["kd_ls"].published, by_label["kd_ls"].published_best
    assert last is not None and best is not None and (last.runs, best.runs) == (1, None)
    assert last.difference == pytest.approx(70.5 - 76.28) and best.difference == pytest.approx(75.5 - 76.62)
    not_stated = by_label["dist"].published
    assert not_stated is not None and (not_stated.reports, not_stated.difference, not_stated.inside) == (
        "unknown",
        None,
        None,
    )


def test_the_notes_name_those_that_report_the_best_epoch(tmp_path: Path) -> None:
    notes = compared(tmp_path, cells()).footnotes
    (best,) = [note for note in notes if note.startswith("Published best epoch:")]
    assert "best on the test set itself" in best and "never beside the last" in best
    assert "mdistiller (" in best and "ls (" in best and "simkd (" in best and "repdistiller" not in best
    (unknown,) = [note for note in notes if note.startswith("Epoch not stated:")]
    assert "dist_kd (" in unknown and "ttm (" in unknown and "no difference to their numbers is computed" in unknown
    (legend,) = [note for note in notes if note.startswith("Published, and not measured here:")]
    assert "repdistiller, RepDistiller README (Tian et al., 2020), last epoch, means of 5 runs" in legend
    assert "logs released with LS (Sun et al., 2024), last epoch, one run" in legend
    assert "mdistiller README (Zhao et al., 2022), best epoch" in legend


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["epochs=480", "schedule.milestones=[150, 180, 210]"], "kd_ls"),
        (["dataset.classes=20"], "at"),
        (["dataset.train_images=1000"], "at"),
        (["augment.randaugment={operations: 2, magnitude: 10}"], "kd_ls"),
        (["optimizer.lr=0.025"], "at"),
        (["methods.at.attention_weight=500"], "at"),
        (["methods.kd_ls.standardise=false"], "kd_ls"),
        (["methods.kd_ls.temperature=3"], "kd_ls"),
        (["methods.kd_1_1.entropy_weights=3"], "kd_1_1"),
        (["methods.kd_dot.training.optimizer={name: dot, delta: 0.05}"], "kd_dot"),
        (["teacher_training.epochs=100"], "dkd"),
    ],
)
def test_another_protocol_is_never_compared(tmp_path: Path, overrides: list[str], label: str) -> None:
    row = rows(compared(tmp_path, cells(*overrides)))[label]
    assert row.published is None and row.published_best is None


def test_a_row_of_480_epochs_is_compared_with_numbers_of_480_epochs(tmp_path: Path) -> None:
    """A row with its own epochs is compared with no other row of its table, but with a number of its own protocol."""
    numbers = FILES["cifar100_best_epoch"]
    source = numbers.file.sources["ls"].model_copy(update={"protocol": {"epochs": 480}})
    cell = PublishedCell("cifar100", "resnet32x4", "resnet8x4", "kd+ls")
    only = {cell: tuple(number for number in numbers.cells[cell] if number.source == "ls")}
    long = PublishedNumbers("long", numbers.file.model_copy(update={"sources": {"ls": source}}), only)
    row = RECIPE["methods"]["kd_ls"] | {"training": {"epochs": 480, "schedule": {"milestones": [150, 180, 210]}}}
    planned = cells(methods={"kd": {}, "kd_ls": row, "usual": RECIPE["methods"]["kd_ls"]})
    table = compared(tmp_path, planned, "cifar100_pairs")
    assert not rows(table)["kd_ls"].comparable
    by_label = rows(published_numbers.compare(table, planned, long))
    assert value(by_label["kd_ls"]) == (None, (76.62, "ls")) and value(by_label["usual"]) == (None, None)


def test_no_best_epoch_beside_the_last_and_nothing_unverified() -> None:
    """All rows of all recipes of CIFAR-100, as they stand before anything is measured."""
    shown = 0
    for recipe in ("cifar100/table6", "cifar100/other_pairs", "cifar100/dist", "cifar100/all_methods"):
        planned = plan(read_recipe(recipe, trials=1), recipe)
        table = summarise(read_results(Path("nowhere"), planned))
        for row in published_numbers.compare(table, planned, *(FILES[name] for name in CIFAR)).rows:
            if row.published is not None:
                assert row.published.reports != "best", row
            if row.published_best is not None:
                assert row.published_best.reports == "best", row
            for number in filter(None, (row.published, row.published_best)):
                assert not number.source.startswith("notes") and not number.source.endswith("quotes"), row
                shown += 1
    assert shown > 300


def test_every_format_keeps_them_apart(tmp_path: Path) -> None:
    summary = compared(tmp_path, cells())
    for format in ("plain", "markdown", "html", "latex-long"):
        text = render_summary(summary, format)
        assert "76.32" in text and "published best epoch" in text
    (line,) = [line for line in render_summary(summary, "markdown").splitlines() if line.startswith("| dkd ")]
    columns = [cell.strip() for cell in line.strip("|").split("|")]
    (head,) = [line for line in render_summary(summary, "markdown").splitlines() if line.startswith("| method ")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    by_name = dict(zip(names, columns, strict=True))
    assert by_name["published % (source)"] == "–" and by_name["published best epoch % (source)"].startswith("76.32 (")
    assert names.index("published best epoch % (source)") == names.index("best epoch, selected on the test set") + 1
    latex = render_summary(summary, "latex")
    assert "Published best epoch & dkd & 76.32" in latex and latex.index("Published best epoch & dkd") > latex.index(
        "Published & teacher"
    )
    records = {line["label"]: line for line in csv.DictReader(render_summary(summary, "csv").splitlines())}
    assert (records["dkd"]["published"], records["dkd"]["published_best"]) == ("", "76.32")
    assert (records["at"]["published_epoch"], records["at"]["published_runs"]) == ("last", "5")
    assert records["kd_ls"]["published_best_source"] == "ls"
