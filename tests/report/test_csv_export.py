"""The tidy CSV: a line a trial, a line an epoch, of the made-up results of the whole Table 6."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pandas as pd
import pytest

from kd_bench.cli.main import app
from kd_bench.report import csv_export
from kd_bench.utils.errors import UserError
from tests.report.table6 import RECIPE, make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("results"), epochs=4)


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
    cell = next(one for one in made.planned if one.label == "dkd")
    assert json.loads(by_id.loc[cell.trial_id, "hyperparameters"]) == cell.trial.method.hyperparameters
    assert by_id.loc[cell.trial_id, "teacher"] == cell.teacher


def test_every_epoch_has_one_line_and_damage_is_told(made, tmp_path):
    folder = tmp_path / "table6"
    cells = [one for one in made.planned if one.trial_id in made.done][:5]
    for cell, text in zip(
        cells, ("epoch,top1\n1,=HYPERLINK()\n", "epoch,top1\n1,20\n2", "epoch\n1,2\n", ""), strict=False
    ):
        (folder / cell.trial_id).mkdir(parents=True)
        (folder / cell.trial_id / "metrics.csv").write_text(text)
    shutil.copytree(made.out / "table6" / cells[4].trial_id, folder / cells[4].trial_id)
    table = csv_export.epochs([("table6", folder, [*cells, *made.planned])])
    found = list(csv.DictReader(io.StringIO(table.text)))
    assert [one["trial_id"] for one in found] == [cells[4].trial_id] * table.lines == [cells[4].trial_id] * 4
    assert [int(one["epoch"]) for one in found] == [1, 2, 3, 4]
    assert float(found[-1]["top1"]) == made.done[cells[4].trial_id]
    assert [cell.trial_id in told for cell, told in zip(cells, table.problems, strict=False)] == [True] * 4


def test_where_nothing_is_there(tmp_path):
    with pytest.raises(UserError, match="there are no trials"):
        app(["export", "csv", "--out", str(tmp_path)], standalone_mode=False)
    with pytest.raises(UserError, match="neither the folder of a trial nor the identity"):
        app(["export", "card", "0123", "--out", str(tmp_path), "--output", str(tmp_path / "x")], standalone_mode=False)
