"""The columns of ``--columns``: means over seeds, empty cells, protocols that are never mixed, notes."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd_bench.cli.main import app
from kd_bench.report.column_cells import trial_values, with_columns
from kd_bench.report.columns import COLUMNS, check_columns, parse_columns
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import ColumnCell, Summary
from kd_bench.trials.evaluation_file import EVALUATION, METRICS
from kd_bench.utils.errors import UserError
from tests.evaluation.results import make
from tests.report.trials import Cell, plan, put, render_summary, trial_id
from tests.trials.test_evaluation_file import MACHINE, content, corruptions

TEACHER = trial_id("t0")


def evaluation(value: float, **changes: Any) -> dict[str, Any]:
    """An evaluation whose ECE, KL and latency are this value."""
    whole = content(**changes)
    calibration = json.loads(json.dumps(whole["calibration"]))
    calibration["plain"]["ece"] = value
    calibration["scaled"]["ece"] = value / 2
    (fidelity,) = whole["fidelity"].values()
    timing = whole["efficiency"]["timings"][0] | {"latency": value}
    return {
        **whole,
        "calibration": calibration,
        "fidelity": {TEACHER: {**fidelity, "kl": value}},
        "efficiency": {**whole["efficiency"], "timings": [timing]},
    }


def write(folder: Path, name: str, of: dict[str, Any]) -> Path:
    """Writes the evaluation of a trial that a test calls by this name."""
    path = folder / trial_id(name) / EVALUATION
    path.write_text(json.dumps(of))
    return path


def cells_of(folder: Path) -> list[Cell]:
    return plan(folder, {"none": [60.0, 60.0], "kd": [62.0, 63.0], "dkd": [64.0, 66.0]})


def summary_of(folder: Path, cells: list[Cell], *names: str) -> Summary:
    summary = summarise(read_results(folder, cells))  # type: ignore[arg-type]
    return with_columns(summary, [(folder, cells)], names)  # type: ignore[list-item]


def column(summary: Summary, label: str, name: str) -> ColumnCell:
    (row,) = (row for row in summary.rows if row.label == label)
    return row.columns[name]


def notes(summary: Summary) -> str:
    return "\n".join(summary.footnotes)


def line(text: str, name: str) -> list[str]:
    """The cells of a row in the terminal's table."""
    (row,) = (line for line in text.splitlines() if re.match(rf" *{name}  ", line))
    return re.split(r" {2,}", row.strip())


def test_means_over_seeds_and_cells_without_an_evaluation(folder: Path) -> None:
    cells = cells_of(folder)
    write(folder, "kd0", evaluation(2.0))
    write(folder, "kd1", evaluation(5.0))
    write(folder, "dkd1", evaluation(3.0))
    summary = summary_of(folder, cells, "top1", "ece", "kl_to_teacher", "latency", "macs")
    for name in ("ece", "kl_to_teacher", "latency"):
        value = column(summary, "kd", name).value
        assert value is not None
        assert (value.mean, value.std, value.n) == (3.5, pytest.approx(statistics.stdev([2, 5])), 2)
        assert column(summary, "none", name).value is None
        assert column(summary, "resnet20", name).value is None
    assert column(summary, "dkd", "ece").partial and not column(summary, "kd", "ece").partial
    text = render_summary(summary, "terminal", width=200)
    assert line(text, "kd") == ["kd", "62.50 ± 0.71", "3.50 ± 2.12", "3.5000 ± 2.1213", "3.500 ± 2.121", "12.50"]
    assert line(text, "dkd")[2:] == ["3.00 (1 of 2)", "3.0000 (1 of 2)", "3.000 (1 of 2)", "12.50 (1 of 2)"]
    assert line(text, "student alone") == ["student alone", "60.00 ± 0.00"]  # empty, and never 0
    assert "n of m: only n of the line's m finished trials have this value." in notes(summary)
    assert "Empty cells: not evaluated yet; see kd-bench evaluate." in notes(summary)
    assert "ECE is the expected calibration error of the predicted class, in 15 bins; lower is better." in notes(
        summary
    )
    assert "Measured with (latency): A Processor (cpu), 1 thread, torch 2.9.0." in notes(summary)
    assert "Seconds an epoch" not in text and "Difference:" not in text  # columns that it does not have


def test_every_column_is_shown_in_every_format(folder: Path) -> None:
    cells = cells_of(folder)
    for name in ("kd0", "kd1"):
        write(folder, name, evaluation(2.0))
    summary = summary_of(folder, cells, *COLUMNS)
    for format_ in ("terminal", "plain", "markdown", "latex", "latex-long", "html", "csv"):
        text = render_summary(summary, format_, width=400)
        assert "kd" in text
        if format_ != "csv":
            for item in COLUMNS.values():
                assert item.unit.replace("%", r"\%" if "latex" in format_ else "%") in text
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(render_summary(summary, "csv")))}
    for name, item in COLUMNS.items():
        if item.of_result is not None:  # of trainings that were measured, see test_energy_columns
            assert rows["kd"][f"{name}_n"] == rows["kd"][f"{name}_mean"] == ""
        elif item.metric:
            assert rows["kd"][f"{name}_n"] == "2" and float(rows["kd"][f"{name}_mean"]) > 0
            assert rows["none"][f"{name}_mean"] == rows["none"][f"{name}_n"] == ""
    assert rows["kd"]["macs_mean"] == "12501632.0" and rows["kd"]["latency_mean"] == "2.0"
    assert rows["kd"]["ece_scaled_protocol"] == f"temperature cross-fitted, 100 test images, digest {'1' * 16}"
    assert "top1_last_mean" in rows["kd"] and "top1_mean" not in rows["kd"]


def test_each_metric_has_columns_and_each_column_a_metric() -> None:
    assert {item.metric for item in COLUMNS.values()} == {"", *METRICS}
    assert all(item.better in ("higher", "lower") and item.note.endswith(f"{item.better} is better.")
               for item in COLUMNS.values())  # fmt: skip


def test_temperatures_of_different_images_are_not_averaged(folder: Path) -> None:
    cells = cells_of(folder)
    held_out = evaluation(8.0)
    held_out["calibration"] |= {"fitted_on": "held-out images", "temperatures": [2.0]}
    for name, of in {"kd0": evaluation(2.0), "kd1": held_out, "dkd0": evaluation(4.0), "dkd1": evaluation(6.0)}.items():
        write(folder, name, of)
    summary = summary_of(folder, cells, "ece", "ece_scaled")
    scaled = column(summary, "kd", "ece_scaled")
    assert scaled.value is not None and (scaled.value.mean, scaled.value.n) == (1.0, 1) and scaled.partial
    plain = column(summary, "kd", "ece").value  # which has no temperature
    assert plain is not None and (plain.mean, plain.n) == (5.0, 2)
    images = f"100 test images, digest {'1' * 16}"
    assert (f"Left out of means, because it was measured otherwise: ECE scaled of kd (temperature of held-out images, "
            f"{images} instead of temperature cross-fitted, {images}).") in notes(summary)  # fmt: skip


def test_a_row_of_another_machine_is_marked_and_not_ranked(folder: Path) -> None:
    cells = cells_of(folder)
    for name, value in {"kd0": 2.0, "kd1": 4.0}.items():
        write(folder, name, evaluation(value))
    for name in ("dkd0", "dkd1"):
        of = evaluation(1.0)
        of["efficiency"]["timings"][0]["machine"] = MACHINE | {"device": "cuda", "device_name": "A GPU"}
        write(folder, name, of)
    summary = summary_of(folder, cells, "latency", "macs")
    assert column(summary, "dkd", "latency").marked and not column(summary, "kd", "latency").marked
    text = render_summary(summary, "terminal", width=200)
    assert line(text, "dkd")[1] == "1.000 ± 0.000 #"
    assert ("#: measured otherwise than the rest of the column, not to be compared: latency of dkd (A GPU (cuda), "
            "1 thread, torch 2.9.0).") in notes(summary)  # fmt: skip
    best = [text for text in render_summary(summary, "markdown").splitlines() if "**" in text]
    assert any("**3.000 ± 1.414**" in text for text in best) and not any("**1.000" in text for text in best)


def test_a_trial_that_was_timed_on_two_machines_has_the_one_of_the_others(folder: Path) -> None:
    cells = cells_of(folder)
    for name in ("kd0", "kd1", "dkd0"):
        write(folder, name, evaluation(2.0))
    both = evaluation(4.0)
    other = {**both["efficiency"]["timings"][0], "latency": 99.0, "machine": MACHINE | {"device_name": "Another"}}
    both["efficiency"]["timings"].insert(0, other)
    path = write(folder, "dkd1", both)
    value = column(summary_of(folder, cells, "latency"), "dkd", "latency").value
    assert value is not None and (value.mean, value.n) == (3.0, 2)
    values, problem = trial_values(path.parent, [])
    assert (
        problem is None and "latency" not in values and values["macs"] == 12_501_632 and "kl_to_teacher" not in values
    )


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("null", "is damaged: it holds no mapping"),
        ('{"kind": "evaluation", "model": []}', "is damaged: it has"),
        (json.dumps(evaluation(9.0, weights_sha256="7" * 64)), "is of other weights than the trial's"),
    ],
)
def test_evaluations_that_are_not_the_trials_are_named_and_left_out(folder: Path, of: str, sentence: str) -> None:
    cells = cells_of(folder)
    write(folder, "kd0", evaluation(2.0))
    path = write(folder, "kd1", {})
    path.write_text(of)
    summary = summary_of(folder, cells, "top1", "ece")
    value = column(summary, "kd", "ece").value
    assert value is not None and (value.mean, value.n) == (2.0, 1)
    (problem,) = summary.problems
    assert problem.startswith(f"{path}: ") and sentence in problem and problem.endswith("; its columns are empty")
    (kd,) = (row for row in summary.rows if row.label == "kd")
    assert kd.done == 2  # the accuracy of the trial is none of its business
    assert problem in render_summary(summary, "plain")


def test_fidelity_is_that_to_the_teacher_of_the_pair(folder: Path) -> None:
    """The student alone is in two pairs, and has been compared with both teachers."""
    put(folder.parent / "teachers" / "t1", epochs=40)
    cells = [
        *plan(folder, {"none": [60.0], "kd": [62.0]}),
        *plan(folder, {"kd": [63.0]}, teacher="resnet32", teacher_id="t1"),
    ]
    alone = cells[0]
    cells.append(Cell("none", 0, alone.trial_id, teacher="resnet32", teacher_id="t1"))
    of = evaluation(2.0)
    of["fidelity"][trial_id("t1")] = {**of["fidelity"][TEACHER], "kl": 7.0}
    write(folder, "none0", of)
    summary = summary_of(folder, cells, "kl_to_teacher")
    values = {
        pair.teacher: row.columns["kl_to_teacher"].value
        for pair in summary.pairs
        for row in pair.rows
        if row.kind == "student"
    }
    means = {teacher: value.mean for teacher, value in values.items() if value is not None}
    assert means == {"resnet20": 2.0, "resnet32": 7.0}


def test_fidelity_of_pairs_whose_teachers_have_one_name(folder: Path) -> None:
    """As two pairs of trials that no recipe plans: their headings differ, the names of their teachers do not."""
    put(folder.parent / "teachers" / "t1", epochs=40)
    cells = [
        *plan(folder, {"none": [60.0], "kd": [62.0]}),
        *plan(folder, {"dkd": [63.0]}, teacher_id="t1", dataset="digits: teacher t1"),
    ]
    alone = cells[0]
    cells.append(Cell("none", 0, alone.trial_id, teacher_id="t1", dataset="digits: teacher t1"))
    of = evaluation(2.0)
    of["fidelity"][trial_id("t1")] = {**of["fidelity"][TEACHER], "kl": 7.0}
    write(folder, "none0", of)
    summary = summary_of(folder, cells, "kl_to_teacher")
    rows = {pair.dataset: row for pair in summary.pairs for row in pair.rows if row.kind == "student"}
    values = {dataset: row.columns["kl_to_teacher"].value for dataset, row in rows.items()}
    means = {dataset: value.mean for dataset, value in values.items() if value is not None}
    assert means == {"digits": 2.0, "digits: teacher t1": 7.0}


def test_teachers_that_were_evaluated_have_values_too(folder: Path) -> None:
    cells = cells_of(folder)
    write(folder.parent / "teachers", "t0", evaluation(1.5))
    summary = summary_of(folder, cells, "ece", "kl_to_teacher", "latency")
    value = column(summary, "resnet20", "ece").value
    assert value is not None and (value.mean, value.n) == (1.5, 1)
    assert column(summary, "resnet20", "kl_to_teacher").value is None


def test_without_columns_nothing_changes(folder: Path) -> None:
    cells = cells_of(folder)
    before = render_summary(summarise(read_results(folder, cells)), "plain")  # type: ignore[arg-type]
    write(folder, "kd0", evaluation(2.0))
    assert render_summary(summary_of(folder, cells), "plain") == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("top1,latecy", "--columns: no column is called 'latecy'; did you mean 'latency'?"),
        ("ece,ece", "--columns: ece is there twice"),
        ("ECE", "--columns: no column is called 'ECE'; did you mean 'ece'?"),
        (
            "top1,",
            "--columns: a name is lacking (it is 'top1,'); names of columns stand between commas, e.g. top1,ece",
        ),
    ],
)
def test_unknown_columns_are_sentences(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_columns(text)
    assert str(caught.value) == sentence


def test_names_of_columns() -> None:
    assert parse_columns("top1, ece") == ("top1", "ece") and parse_columns(None) == ()
    with pytest.raises(UserError, match=r"^columns: no column is called ''"):
        check_columns([""])
    with pytest.raises(UserError, match=r"there are: top1, .* throughput, .* and corrupted_NAME for each corruption$"):
        check_columns(["zzz"])


def test_commands_have_the_columns_and_the_page_a_plot(tmp_path: Path, capsys) -> None:
    made = make(tmp_path, {"methods": {"none": {}, "kd": {}}})
    common = ("--out", str(made.out))
    with pytest.raises(UserError, match=r"no column is called 'brie'; did you mean 'brier'\?"):
        app(["table", str(made.recipe), "--columns", "brie", *common], standalone_mode=False)
    page = tmp_path / "report.html"
    report = ["report", "--recipe", str(made.recipe), *common, "--output", str(page)]
    app(report, standalone_mode=False)
    assert "Accuracy against latency" not in page.read_text()
    for label in ("none", "kd"):
        for seed in (0, 1):
            path = made.folder(label, seed)
            result = json.loads((path / "result.json").read_text())
            of = evaluation(2.0, weights_sha256=result["weights_sha256"], images=result["images"])
            of["efficiency"]["timings"][0]["machine"] = MACHINE | {"device_name": "</p> & Processor"}
            (path / EVALUATION).write_text(json.dumps(of))
    app([*report, "--columns", "ece,latency"], standalone_mode=False)
    text = page.read_text()
    assert text.count("Accuracy against latency: ") >= 1 and "milliseconds an image" in text
    assert "&lt;/p&gt; &amp; Processor (cpu), 1 thread, torch 2.9.0" in text and "</p> & Processor" not in text
    assert text.count('<span class="whole">2.00 ± 0.00</span>') == 2
    assert "NLL" not in text
    capsys.readouterr()
    app(["export", "csv", "--recipe", str(made.recipe), *common], standalone_mode=False)
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["latency"] for row in lines} == {"2.0"} and {row["macs"] for row in lines} == {"12501632"}
    assert {row["parameters"] for row in lines} == {""}  # what the result says, which these do not have
    app(["table", str(made.recipe), "--columns", "top1,ece", *common, "--format", "csv"], standalone_mode=False)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["ece_mean"] for row in rows] == ["", "2.0", "2.0"]
    code = (
        "import sys; from kd_bench.cli.main import app\n"
        f"app(['table', {str(made.recipe)!r}, '--out', {str(made.out)!r}, '--columns', 'ece,latency'], "
        "standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'torchmetrics', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=100)


def test_columns_of_the_results_themselves(folder: Path) -> None:
    """The gap between best and last epoch, and what held-out images say; without any, their cells are empty."""
    cells = cells_of(folder)
    for cell, (held_out, selected) in zip(cells[2:4], [(70.0, 61.0), (72.0, 62.0)], strict=True):
        path = folder / cell.trial_id / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"val_top1_last": held_out, "top1_val_best": selected}))
    summary = summary_of(folder, cells, "gap", "val_top1", "top1_val_best")
    (row,) = (row for row in summary.pairs[0].rows if row.label == "kd")
    assert row.gap is not None and row.held_out is not None and row.selected is not None
    gaps = [json.loads((folder / cell.trial_id / "result.json").read_text()) for cell in cells[2:4]]
    assert row.gap.mean == pytest.approx(statistics.mean(result["top1_best"] - result["top1_last"] for result in gaps))
    assert (row.held_out.mean, row.selected.mean) == (71.0, 61.5)
    (other,) = (row for row in summary.pairs[0].rows if row.label == "dkd")
    assert other.gap is not None and other.held_out is None and other.selected is None
    text = render_summary(summary, "plain")
    assert "held-out" in text and "71.00" in text


def test_an_unfinished_evaluation_on_corrupted_images_is_an_empty_cell(folder: Path) -> None:
    cells = cells_of(folder)
    whole, partial = corruptions(), corruptions(mean=None)
    for part in ("accuracy", "digests"):
        partial[part] = {name: values for name, values in partial[part].items() if name != "fog"}
    write(folder, "kd0", evaluation(2.0, corruptions=[partial]))
    write(folder, "kd1", evaluation(2.0, corruptions=[whole]))
    summary = summary_of(folder, cells, "corrupted", "corrupted_snow", "corrupted_fog")
    for name in ("corrupted", "corrupted_snow", "corrupted_fog"):
        cell = column(summary, "kd", name)
        assert cell.value is not None and (cell.value.mean, cell.value.n) == (40.0, 1) and cell.partial
        assert column(summary, "none", name).value is None


def test_corrupted_images_of_other_origins_are_not_averaged(folder: Path) -> None:
    """Published copies of different pixels, made ones, and made ones of another version of the package."""
    cells = plan(folder, {"kd": [60.0] * 6})
    published = {"source": "published", "origin": "CIFAR-100-C", "libraries": {}}
    other_pixels = {name: ["5" * 32] * 5 for name in corruptions()["digests"]}
    written = [
        corruptions(**published),
        corruptions(**published, digests=other_pixels),
        corruptions(),
        corruptions(),
        corruptions(origin="imagecorruptions-imaug 9"),
        corruptions(libraries={"numpy": "1.0"}),
    ]
    for seed, value in enumerate(written):
        write(folder, f"kd{seed}", evaluation(2.0, corruptions=[value]))
    cell = column(summary_of(folder, cells, "corrupted"), "kd", "corrupted")
    assert cell.value is not None and cell.value.n == 3 and len(cell.others) == 3
    assert cell.protocol is not None and "made by imagecorruptions-imaug 1.1.5 with the strengths" in cell.protocol
