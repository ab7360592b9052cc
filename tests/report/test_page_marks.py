"""Damaged trials and trials of another protocol are marked on the page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import identity
from kd_bench.plan import plan
from kd_bench.report.page import _sentences, page
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults
from kd_bench.report.trial_data import PageTrials
from tests.report.page_made import Reader
from tests.report.test_protocol import RECIPE, cells, otherwise
from tests.report.trials import put, write_trial


def test_another_protocol_is_marked(tmp_path: Path) -> None:
    planned = [otherwise(cell, epochs=60) if (cell.label, cell.seed) in (("dkd", 2), ("crd", 0), ("crd", 1), ("crd", 2))
               else cell for cell in cells()]  # fmt: skip
    for cell in planned:
        write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
        put(tmp_path / "r" / cell.trial_id, top1_last=60.0 + cell.seed)
    frame = read_results(tmp_path / "r", planned)
    text = page([FolderResults("r", "", summarise(frame), frame, planned, tmp_path / "r")])
    reader = Reader()
    reader.feed(text)
    shown = [" ".join("".join(text).split()) for _, text in reader.cells]
    assert any(re.fullmatch(r"\d\d\.\d\d ± \d\.\d\d other protocol", text) for text in shown), "crd"
    assert any("left out: epochs 60 instead of 30" in text for text in shown)
    left_out = "Left out of every mean: 1 trial of another protocol than the row's others."
    assert left_out in html.unescape(text)


def test_several_students_alone_and_long_epochs(tmp_path: Path) -> None:
    planned = plan(read_recipe(RECIPE | {"methods": {"none": {}, "mixup": {"method": "none"}, "kd": {}}}), "r")
    for cell in planned:
        write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
        put(tmp_path / "r" / cell.trial_id, top1_last=60.0 + cell.seed, seconds_per_epoch=1234.5)
    frame = read_results(tmp_path / "r", planned)
    text = page([FolderResults("r", "", summarise(frame), frame, planned, tmp_path / "r")])
    grid = text[text.index('<section id="grid-1">') :].split("</section>")[0]
    assert "<br>none: <button" in grid and "<br>mixup: <button" in grid
    assert '<td data-value="1234.5">1234</td>' in text and "e+03" not in text


def test_thinned_curves_end_with_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names the last value of a curve."""
    monkeypatch.setattr("kd_bench.report.trial_data._CURVE_VALUES", 50)
    (cell, *_) = cells()
    write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
    put(tmp_path / "r" / cell.trial_id, top1_last=60.0)
    trials = PageTrials()
    trials.add("key", {"status": "done"}, tmp_path / "r" / cell.trial_id, cell, None, crossed=False)
    data = trials.data()
    curve = data["trials"]["key"]["curves"]["top1"]
    assert data["step"] == 3 and len(curve) == 10 and curve[-1] == 60.0


def test_the_sign_flip_test_of_many_seeds_is_not_called_exact(tmp_path: Path) -> None:
    for seeds, name in ((20, "exact sign-flip test"), (21, "sign-flip test with random signs")):
        planned = plan(read_recipe(RECIPE, trials=seeds), "r")
        for cell in planned:
            write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
            put(tmp_path / "r" / cell.trial_id, top1_last=60.0 + cell.seed % 7 + (cell.label == "dkd") * cell.seed % 3)
        (pair,) = summarise(read_results(tmp_path / "r", planned)).pairs
        sentences = " ".join(_sentences(pair, next(row for row in pair.rows if row.label == "dkd"), "kd"))
        assert f"p of the {name}: " in sentences


def test_damaged_files_are_told_and_no_error(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "out" / "mine"
    for cell in cells():
        write_trial(folder / cell.trial_id, cell.trial)
        put(folder / cell.trial_id, top1_last=60.0 + cell.seed)
    first, second, third, fourth = (cell.trial_id for cell in cells()[:4])
    (folder / first / "metrics.csv").write_bytes(b"epoch,top1\n1,\xff\n")
    (folder / first / "environment.json").write_text("[" * 100_000)
    (folder / second / "metrics.csv").write_text("epoch,top1\n1,NaN\n2,abc\n")
    deep = "[" * 50 + "]" * 50
    (folder / second / "environment.json").write_text(f'{{"device": NaN, "command": 7, "earlier": 3, "deep": {deep}}}')
    (folder / third / "result.json").write_text("{")
    metrics = (folder / fourth / "metrics.csv").read_text().splitlines()
    infinite = metrics[1].split(",")
    infinite[metrics[0].split(",").index("train_loss")] = "inf"
    (folder / fourth / "metrics.csv").write_text("\n".join([metrics[0], ",".join(infinite), *metrics[2:]]) + "\n")
    (folder / "0123456789abcdef").mkdir()
    (folder / "0123456789abcdef" / "trial.json").write_text('{"seed": 1}')
    settings = cells()[0].trial.settings() | {"seed": 99}
    moved = folder / ("f" * 16)
    moved.mkdir()
    (moved / "trial.json").write_text(json.dumps(settings))
    assert identity(settings) != moved.name
    file = tmp_path / "page.html"
    run = CliRunner().invoke(app, ["report", "--out", str(out), "--output", str(file)])
    assert run.exit_code == 0, run.output
    text = html.unescape(file.read_text(encoding="utf-8"))
    trials = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])["trials"]
    damaged = [trials[f"mine/{name}"] for name in (first, second, third)]
    assert {trial["status"] for trial in damaged} == {"damaged"}
    assert all(not trial["curves"] and "top1_last" not in trial["result"] for trial in damaged)
    assert [[problem.split(":")[0] for problem in trial["problems"]] for trial in damaged] == [
        ["metrics.csv is damaged", "environment.json is damaged"],
        ["metrics.csv is damaged", "environment.json is damaged"],
        ["result.json is damaged"],
    ]
    whole = trials[f"mine/{fourth}"]
    assert whole["status"] == "done" and whole["problems"] == []
    assert whole["curves"]["train_loss"][:2] == [None, 2.5]
    assert whole["curves"]["top1"][-1] == whole["result"]["top1_last"]
    assert "2 folders whose trial.json is damaged (0123456789abcdef, ffffffffffffffff)" in text
    assert f"{moved / 'trial.json'}: was changed by hand: its settings are those of trial {identity(settings)}" in text
