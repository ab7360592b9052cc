"""The tidy CSV: a line a trial, a line an epoch, of the made-up results of the whole Table 6."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from kd_bench.cli.main import app
from kd_bench.report import csv_export
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path
from tests.report.table6 import RECIPE, make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("results"))


def test_every_trial_has_one_line(made, tmp_path):
    app(["export", "csv", "--recipe", RECIPE, "--out", str(made.out), "--output", str(tmp_path / "all.csv")],
        standalone_mode=False)  # fmt: skip
    frame = pd.read_csv(tmp_path / "all.csv", keep_default_na=False)
    assert sorted(frame["trial_id"]) == sorted({cell.trial_id for cell in made.planned})
    by_id = frame.set_index("trial_id")
    for name, top1 in made.done.items():
        assert float(by_id.loc[name, "top1_last"]) == top1
    assert set(by_id.loc[list(made.failed), "status"]) == {"failed"}
    assert set(by_id.loc[list(made.missing), "top1_last"]) == {""}
    alone = frame[frame["method"] == "none"]
    assert set(alone["teacher"]) == set(alone["teacher_id"]) == {""}
    cell = next(cell for cell in made.planned if cell.label == "dkd")
    assert json.loads(by_id.loc[cell.trial_id, "hyperparameters"]) == cell.trial.method.hyperparameters
    assert by_id.loc[cell.trial_id, "teacher"] == cell.teacher


def test_logit_settings_are_among_the_hyper_parameters(made, tmp_path):
    cell = next(cell for cell in made.planned if cell.label == "dkd")
    settings = cell.trial.method.model_copy(update={"standardise": True, "entropy_weights": 3.0})
    changed = replace(cell, trial=cell.trial.model_copy(update={"method": settings}))
    (line,) = csv.DictReader(io.StringIO(csv_export.trials([("table6", tmp_path, [changed])]).text))
    assert json.loads(line["hyperparameters"]) == cell.trial.method.hyperparameters | {
        "standardise": True,
        "entropy_weights": 3.0,
    }


def test_every_epoch_has_one_line_and_damage_is_told(made, tmp_path):
    folder = tmp_path / "table6"
    cells = [cell for cell in made.planned if cell.trial_id in made.done][:5]
    for cell, text in zip(
        cells, ("epoch,top1\n1,=HYPERLINK()\n", "epoch,top1\n1,20\n2", "epoch\n1,2\n", "", None), strict=True
    ):
        shutil.copytree(made.out / "table6" / cell.trial_id, folder / cell.trial_id)
        if text is not None:
            (folder / cell.trial_id / "metrics.csv").write_text(text)
    table = csv_export.epochs([("table6", folder, [*cells, *made.planned])])
    records = list(csv.DictReader(io.StringIO(table.text)))
    assert [record["trial_id"] for record in records] == [cells[4].trial_id] * table.lines == [cells[4].trial_id] * 240
    assert [int(record["epoch"]) for record in records] == list(range(1, 241))
    assert float(records[-1]["top1"]) == made.done[cells[4].trial_id]
    whole = (folder / cells[4].trial_id / "metrics.csv").read_text().splitlines()
    assert [",".join(list(record.values())[len(csv_export.KEYS) :]) for record in records] == whole[1:]
    assert len(table.problems) == 4
    for cell, problem in zip(cells, table.problems, strict=False):
        assert problem.startswith(f"{folder / cell.trial_id / 'metrics.csv'}: is damaged: ")
        assert problem.endswith("; left out")


def test_unfinished_trials_are_exported_unless_their_metrics_are_damaged(made, tmp_path):
    folder = tmp_path / "table6"
    first, second, third = [cell for cell in made.planned if cell.trial_id in made.done][:3]
    for cell in (first, second, third):
        shutil.copytree(made.out / "table6" / cell.trial_id, folder / cell.trial_id)
        (folder / cell.trial_id / "result.json").unlink()
    (folder / first.trial_id / "metrics.csv").write_text("epoch,top1\n1,20.5\n")
    (folder / second.trial_id / "metrics.csv").write_text("epoch,top1\n1,NaN\n")
    (folder / third.trial_id / "metrics.csv").write_text("epoch,top1,=cmd()\n1,20.5,3\n")
    table = csv_export.epochs([("table6", folder, [first, second, third])])
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert (row["trial_id"], row["epoch"], row["top1"]) == (first.trial_id, "1", "20.5")
    assert [second.trial_id in table.problems[0], third.trial_id in table.problems[1]] == [True, True]
    assert "is none of ours" in table.problems[1]


def test_a_damaged_trial_has_a_line_without_numbers(made, tmp_path, capsys):
    app(["export", "csv", "--recipe", RECIPE, "--out", str(made.out), "--output", str(tmp_path / "all.csv")],
        standalone_mode=False)  # fmt: skip
    messages = capsys.readouterr().err.splitlines()
    by_id = pd.read_csv(tmp_path / "all.csv", keep_default_na=False).set_index("trial_id")
    assert len(messages) == len(made.damaged) == 4
    for name in made.damaged:
        assert by_id.loc[name, ["status", "top1_last", "top1_best", "seconds"]].tolist() == ["damaged", "", "", ""]
        assert by_id.loc[name, "reason"] == "result.json is damaged: it says 120 epochs, but trial.json says 240"
        (sentence,) = (line for line in messages if name in line)
        assert "restore it, or remove" in sentence and sentence.endswith("its line has no numbers")


def test_where_nothing_is_there(tmp_path):
    with pytest.raises(UserError, match="there are no trials"):
        app(["export", "csv", "--out", str(tmp_path)], standalone_mode=False)
    with pytest.raises(UserError, match="neither the folder of a trial nor the id of one"):
        app(["export", "card", "0123", "--out", str(tmp_path), "--output", str(tmp_path / "x")], standalone_mode=False)


def test_every_attack_has_one_line(tmp_path):
    measured = Path(__file__).parents[2] / "results" / "measured"
    arguments = ["export", "csv", "--recipe", "robustness/digits", "--out", str(measured), "--attacks"]
    app([*arguments, "--output", str(tmp_path / "attacks.csv")], standalone_mode=False)
    frame = pd.read_csv(tmp_path / "attacks.csv")
    files = list((measured / "robust_digits").glob("*/attacks/*.json"))
    assert frame["trial_id"].nunique() == len(files) == 12
    for file in files:
        content = json.loads(file.read_text())
        lines = frame[frame["trial_id"] == file.parents[1].name].set_index("attack")
        assert lines["top1"].to_dict() == content["accuracy"]
        (last,) = lines.index[lines["is_robust"]]
        assert lines.loc[last, "top1"] == content["robust"] and lines.loc[last, "is_autoattack"]
        assert set(lines["eps"]) == {0.1} and set(lines["images"]) == {50} and set(lines["test_images"]) == {1597}
    with pytest.raises(UserError, match="--epochs and --attacks exclude each other"):
        app([*arguments, "--epochs"], standalone_mode=False)


def test_a_single_line_is_named_in_the_singular(tmp_path, capsys):
    selection = ["--recipe", "demo", "--only", "method=kd", "--trials", "1"]
    measured = str(package_path("results", "measured"))
    app(["export", "csv", *selection, "--out", measured, "--output", str(tmp_path / "x.csv")], standalone_mode=False)
    assert capsys.readouterr().out == f"export: 1 trial: {tmp_path / 'x.csv'}\n"
