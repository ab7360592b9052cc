"""Folders of trials that are damaged in every way: marked in every command, while everything else goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from kd_bench.trials.integrity import check_trial
from kd_bench.trials.reader import read_trial
from tests.hostile import folders
from tests.hostile.folders import FINDINGS, OTHER, Results, call, changed_by_hand, flipped, rows

#: Findings of which the slower commands, report and run, are tried in every test run; the slow tests try all.
QUICK = (
    *("trial.json: null", "trial.json: gone", "trial.json: edited", "trial.json: a named pipe"),
    *("result.json: brackets", "result.json: 150 %", "metrics.csv: a row cut off", "metrics.csv: a named pipe"),
    *("environment.json: gone", "environment.json: earlier a number", "weights: a named pipe"),
    *("the folder: a file", "the folder: a link to itself"),
)


def damaged(whole: Results, root: Path, finding: str) -> tuple[Results, str]:
    """A copy of the results with one damaged trial, and the file that a command must name."""
    results = whole.copy(root)
    damage, file = FINDINGS[finding]
    damage(results.folder)
    return results, file


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- nothing is damaged ---


def test_whole_folders_are_content(whole: Results) -> None:
    assert call("status", whole.recipe, "--out", whole.out).stdout == "small: 5 trainings: 5 done\n"
    assert call("verify", whole.out).stdout == f"{whole.out}: 5 trials: 5 done; no faults found\n"
    table = rows(call("table", whole.recipe, "--out", whole.out, "--format", "csv").stdout)
    assert [(row["done"], row["damaged"]) for row in table] == [("1", "0"), ("2", "0"), ("2", "0")]
    export = call("export", "csv", "--recipe", whole.recipe, "--out", whole.out)
    assert (export.code, export.stderr) == (0, "")
    assert {row["status"] for row in rows(export.stdout)} == {"done"}
    done = call("run", whole.recipe, "--out", whole.out)
    assert done.code == 0, done.stderr


# --- every finding, in every command ---


@pytest.mark.parametrize("finding", FINDINGS)
def test_status_table_export_and_verify(whole: Results, tmp_path: Path, finding: str) -> None:
    results, file = damaged(whole, tmp_path, finding)
    check_status(results, finding, file)
    check_table(results, file)
    check_export(results, file)
    check_verify(results, finding, file)


@pytest.mark.parametrize("finding", QUICK)
def test_other_formats_report_and_run(whole: Results, tmp_path: Path, finding: str) -> None:
    results, file = damaged(whole, tmp_path, finding)
    check_table(results, file, ("terminal", "markdown", "latex", "latex-long"))
    check_report(results, file)
    check_run(results, file)


@pytest.mark.slow
@pytest.mark.parametrize("finding", sorted(set(FINDINGS) - set(QUICK)))
def test_report_and_run_of_the_others(whole: Results, tmp_path: Path, finding: str) -> None:
    results, file = damaged(whole, tmp_path, finding)
    check_report(results, file)
    check_run(results, file)


def check_status(results: Results, finding: str, file: str) -> None:
    status = call("status", results.recipe, "--out", results.out)
    assert status.code == 1
    line, last = status.stdout.splitlines()
    assert line.split()[:2] == ["changed" if changed_by_hand(finding) else "damaged", results.victim]
    assert str(results.folder) in line and file in line and "restore it, or remove" in line
    assert last == f"small: 5 trainings: 4 done, 1 {'changed by hand' if changed_by_hand(finding) else 'damaged'}"


def check_table(results: Results, file: str, formats: Sequence[str] = ("plain",)) -> None:
    csv_table = call("table", results.recipe, "--out", results.out, "--format", "csv")
    assert csv_table.code == 0
    teacher, alone, kd = rows(csv_table.stdout)
    assert (kd["planned"], kd["done"], kd["damaged"], kd["top1_last_mean"]) == ("2", "1", "1", str(OTHER))
    assert (alone["done"], alone["damaged"], teacher["done"]) == ("2", "0", "1")
    for format in formats:
        table = call("table", results.recipe, "--out", results.out, "--format", format)
        assert table.code == 0
        assert "1/2, 1 damaged" in one_line(table.stdout)
        if "latex" not in format:
            assert re.search(rf"kd, student .*{results.victim}\) damaged: .*{file}", one_line(table.stdout))


def check_export(results: Results, file: str) -> None:
    export = call("export", "csv", "--recipe", results.recipe, "--out", results.out)
    assert export.code == 0
    by_id = {row["trial_id"]: row for row in rows(export.stdout)}
    assert by_id[results.victim]["status"] == "damaged" and file in by_id[results.victim]["reason"]
    numbers = ("top1_last", "top1_best", "top5_last", "seconds", "epochs", "parameters", "finished")
    assert all(by_id[results.victim][key] == "" for key in numbers)
    assert sorted(row["top1_last"] for row in by_id.values()) == ["", "40.0", "40.0", str(OTHER)]
    (sentence,) = export.stderr.splitlines()
    assert sentence.startswith(f"export: {results.folder}") and file in sentence
    epochs = call("export", "csv", "--epochs", "--recipe", results.recipe, "--out", results.out)
    assert epochs.code == 0 and len(rows(epochs.stdout)) == 9
    assert results.victim not in epochs.stdout and results.victim in epochs.stderr
    card = call("export", "card", results.victim, "--out", results.out, "--output", results.root / "card")
    assert card.code == 2 and card.stderr.count("\n") == 1
    assert card.stderr.startswith(f"kd-bench: {results.folder}") and file in card.stderr
    assert not (results.root / "card").exists()


def check_verify(results: Results, finding: str, file: str) -> None:
    verify = call("verify", results.out)
    assert verify.code == 1
    *faults, summary = verify.stdout.splitlines()
    assert all(fault.startswith(str(results.folder)) for fault in faults) and file in faults[0]
    kind = "changed by hand" if changed_by_hand(finding) else "damaged"
    states = ", ".join(sorted([f"1 {kind}", "4 done"], key=lambda state: state[2:]))
    assert summary.startswith(f"{results.out}: 5 trials: {states}; {len(faults)} fault")


def check_report(results: Results, file: str) -> None:
    for source in (("--recipe", results.recipe), ()):
        page = results.root / "page.html"
        report = call("report", *source, "--out", results.out, "--output", page)
        assert report.code == 0, report.stderr
        text = page.read_text()
        data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])["trials"]
        victim = data.pop(f"small/{results.victim}", None)
        assert results.victim in text and file in text
        if source:
            assert victim is not None
        if victim is not None:
            assert victim["status"] == "damaged" and "top1_last" not in victim["result"] and not victim["curves"]
        accuracies = [trial["result"]["top1_last"] for name, trial in data.items() if name.startswith("small/")]
        assert sorted(accuracies) == [40.0, 40.0, OTHER]


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Size and beginning of each file. A sparse file of many gigabytes cannot be read as a whole."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    content_by_path = {}
    for path in files:
        with open(path, "rb") as file:
            content_by_path[path] = path.stat().st_size, file.read(2**20)
    return content_by_path


def check_run(results: Results, file: str) -> None:
    before = contents(results.out)
    done = call("run", results.recipe, "--out", results.out)
    assert done.code == 1
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("small: left out: "))
    assert str(results.folder) in sentence and file in sentence
    assert f"restore it, or remove {results.folder} to train this trial again" in sentence
    assert "1 training has no result" in done.stderr and "1/2, 1 damaged" in done.stdout
    assert contents(results.out) == before


# --- what needs more than a look ---


def test_weights_with_a_flipped_bit(whole: Results, tmp_path: Path) -> None:
    results = whole.copy(tmp_path)
    flipped("student.safetensors")(results.folder)
    verify = call("verify", results.out)
    assert verify.code == 1 and "student.safetensors: is not what was written" in verify.stdout
    assert "5 trials: 1 damaged, 4 done; 1 fault found" in verify.stdout
    card = call("export", "card", results.folder, "--out", results.out, "--output", tmp_path / "card")
    assert card.code == 2 and "student.safetensors: is not what was written" in card.stderr
    assert not (tmp_path / "card").exists()


def test_results_without_weights(whole: Results, tmp_path: Path) -> None:
    results = whole.copy(tmp_path)
    for file in results.out.glob("*/*/student.safetensors"):
        file.unlink()
    assert call("verify", results.out).code == 1
    content = call("verify", results.out, "--without-weights")
    assert (content.code, content.stdout) == (0, f"{results.out}: 5 trials: 5 done; no faults found\n")
    refused = call("verify", results.out, "--without-weights", "--accuracy")
    assert refused.code == 2 and "--without-weights must be left out" in refused.stderr
    kd = rows(call("table", results.recipe, "--out", results.out, "--format", "csv").stdout)[-1]
    assert (kd["done"], kd["damaged"]) == ("2", "0")
    status = call("status", results.recipe, "--out", results.out).stdout
    assert status.splitlines()[-1] == "small: 5 trainings: 5 waiting"
    assert f"waiting  {results.victim}" in status
    assert "61.23 %, but its weights are gone, so the next run trains it again" in status
    (results.folder / "metrics.csv").write_text("epoch,top1\n")
    assert call("verify", results.out, "--without-weights").code == 1


def test_a_damaged_teacher_is_marked_and_its_students_are_not_trained(whole: Results, tmp_path: Path) -> None:
    results = whole.copy(tmp_path)
    teacher = results.out / "teachers" / results.others[0]
    (teacher / "result.json").write_text("null")
    row, *_, kd = rows(call("table", results.recipe, "--out", results.out, "--format", "csv").stdout)
    assert (row["kind"], row["done"], row["damaged"], row["top1_last_mean"]) == ("teacher", "0", "1", "")
    assert (kd["done"], kd["damaged"]) == ("2", "0")
    status = call("status", results.recipe, "--out", results.out).stdout.splitlines()
    assert status[0].startswith(f"damaged  {results.others[0]}  teacher cifar_resnet14, seed 0")
    assert "2 trials" not in status[-1] and status[-1] == "small: 5 trainings: 4 done, 1 damaged"
    assert call("run", results.recipe, "--out", results.out).code == 0, "all students are done, so nobody needs it"
    (results.folder / "result.json").unlink()
    done = call("run", results.recipe, "--out", results.out)
    assert done.code == 1
    assert f"small: left out: {teacher / 'result.json'}: is damaged" in done.stderr
    assert f"its teacher cifar_resnet14 ({results.others[0]}) is damaged" in done.stderr


def test_the_others_are_trained(whole: Results, tmp_path: Path) -> None:
    results = whole.copy(tmp_path)
    (results.folder / "result.json").write_text("null")
    settings_of = {path.parent: json.loads(path.read_text()) for path in results.out.glob("small/*/trial.json")}
    (missing,) = (path for path, of in settings_of.items() if (of["method"]["name"], of["seed"]) == ("none", 1))
    for file in missing.iterdir():
        file.unlink()
    missing.rmdir()
    done = call("run", results.recipe, "--out", results.out)
    assert done.code == 1, done.stderr
    assert f"small: left out: {results.folder / 'result.json'}: is damaged" in done.stderr
    assert read_trial(missing).verdict == "done" and check_trial(missing).faults == ()
    assert (results.folder / "result.json").read_text() == "null"


def test_only_damaged_trials(whole: Results, tmp_path: Path) -> None:
    results = whole.copy(tmp_path)
    for file in results.out.glob("*/*/trial.json"):
        file.write_text("null")
    for source in (("--recipe", results.recipe), ()):
        report = call("report", *source, "--out", results.out, "--output", tmp_path / "page.html")
        assert report.code == 0, report.stderr
        assert results.victim in (tmp_path / "page.html").read_text()
        export = call("export", "csv", *source, "--out", results.out)
        assert export.code == 0 and str(results.folder) in export.stderr and "61.23" not in export.stdout
    verify = call("verify", results.out)
    assert verify.code == 1 and "5 trials: 5 damaged; 5 faults found" in verify.stdout


@pytest.mark.parametrize(
    "content", ["null", "[", "{}", '{"pid": "x"}', None, '{"host": 1, "here": "a", "pid": 1, "born": 1e300}',
                '{"host": "a", "here": "b", "pid": 1, "born": 0, "token": "c", "released": false, "since": 1e18}']
)  # fmt: skip
def test_leases_and_failures_of_unfinished_trials(whole: Results, tmp_path: Path, content: str | None) -> None:
    results = whole.copy(tmp_path)
    (results.folder / "result.json").unlink()
    for name in ("lease.000001", "failure.json"):
        if content is None:
            folders.pipe(results.folder / name)
        else:
            (results.folder / name).write_text(content)
    (results.folder / "checkpoint").write_text("no folder")
    status = call("status", results.recipe, "--out", results.out)
    assert status.stdout.splitlines()[-1] == "small: 5 trainings: 4 done, 1 waiting"
    assert "4 done, 1 unfinished; no faults found" in call("verify", results.out).stdout


@pytest.mark.parametrize(
    "content", ["null", "[" * 100_000, '{"kind": "attack", "status": "done", "images": 1e999}', None]
)
def test_damaged_evaluations_are_left_out(whole: Results, tmp_path: Path, content: str | None) -> None:
    results = whole.copy(tmp_path)
    (results.folder / "attacks").mkdir()
    for file in (results.folder / "attacks" / "0000000000000000.json", results.folder / "evaluation.json"):
        folders.pipe(file) if content is None else file.write_text(content)
    report = call("report", "--recipe", results.recipe, "--out", results.out, "--output", tmp_path / "page.html")
    assert report.code == 0, report.stderr
    table = call("table", results.recipe, "--out", results.out, "--columns", "top1,ece", "--format", "plain")
    assert table.code == 0 and f"{results.folder / 'evaluation.json'}: is " in table.stdout
    assert f"{(folders.TOP1 + folders.OTHER) / 2:.2f}" in table.stdout  # the accuracy is shown all the same
    verify = call("verify", results.out)
    assert verify.code == 1 and f"{results.folder / 'evaluation.json'}: is " in verify.stdout
    export = call("export", "csv", "--recipe", results.recipe, "--out", results.out)
    assert export.code == 0 and f"{results.folder / 'evaluation.json'}: is " in export.stderr
