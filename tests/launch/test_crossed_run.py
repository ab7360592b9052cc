"""A recipe with two seeds of its teacher, trained through the command line, killed and resumed."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
extends: digits/base.yaml
epochs: 2
trials: 2
pairs: [{teacher: resnet8, student: resnet8}]
methods: {none: {}, kd: {}, dkd: {}}
teacher_training: {epochs: 1}
teachers: {resnet8: {seeds: 2}}
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "kd_bench", *map(str, arguments)]


def results(out: Path) -> dict[str, float]:
    """Accuracy by folder of the finished trials, those of teachers among them."""
    files = sorted(out.glob("*/*/result.json"))
    return {file.parent.name: json.loads(file.read_text())["top1_last"] for file in files}


def teachers(out: Path) -> set[str]:
    """Ids of the finished teachers."""
    return {file.parent.name for file in out.glob("teachers/*/result.json")}


def call(*arguments: str | Path, code: int = 0) -> str:
    """Returns what a command has printed; it must end with this code."""
    done = subprocess.run(command(*arguments), check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr * (arguments[0] == "run")


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    recipe = tmp_path / "crossed.yaml"
    recipe.write_text(RECIPE)
    run = ("run", recipe, "--jobs", "1", "--out")
    process = subprocess.Popen(command(*run, tmp_path / "killed"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(results(tmp_path / "killed")) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and "to train: 10 trials and 2 teachers" in output
    before = results(tmp_path / "killed")
    assert 5 <= len(before) < 12

    out = tmp_path / "killed"
    assert "12 trainings: " in call("status", recipe, "--out", out, code=1)
    assert f"to train: {10 - len(set(before) - teachers(out))} trials" in call(*run, out)
    call(*run, tmp_path / "whole")
    assert results(out) == results(tmp_path / "whole")
    assert len(results(out)) == 2 + 2 + 2 * 2 * 2  # teachers, student alone, kd and dkd
    assert before.items() <= results(out).items()

    table = call("table", recipe, "--out", out, "--format", "markdown")
    assert "(2 x 2)" in table and "(2 x –)" in table and "(– x 2)" in table and "degrees of freedom" in table
    rows = list(csv.DictReader(io.StringIO(call("export", "csv", "--recipe", recipe, "--out", out))))
    kd = [row for row in rows if row["label"] == "kd"]
    assert sorted((row["teacher_seed"], row["seed"]) for row in kd) == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert {row["teacher_id"] for row in kd} == teachers(out)
