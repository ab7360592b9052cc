"""Methods with a preparation from the command line: files, status, table and estimate, and resuming after a kill."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.photos import tree
from tests.launch.test_end_to_end import command, kill_tree, run, weights

EPOCHS, BEFORE = 2, 6
METHODS = {"kd": {}, **{name: {"preparation_epochs": BEFORE} for name in ("ab", "fsp", "ft")}}
RECIPE: dict[str, Any] = {
    "dataset": {"name": "digits", "train_images": 200, "test_images": 50},
    "epochs": EPOCHS,
    "batch_size": 50,
    "trials": 1,
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "cosine"},
    "teacher_training": {"epochs": 1},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": METHODS,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "before.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = run("run", str(recipe), "--out", str(out), "--format", "csv")
    assert done.returncode == 0, done.stderr
    return out


def folders(out: Path) -> dict[str, Path]:
    """Returns the folder of each method."""
    by_method = {
        json.loads(path.read_text())["method"]["name"]: path.parent for path in out.glob("before/*/trial.json")
    }
    assert by_method.keys() <= METHODS.keys()
    return by_method


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def kill_in_preparation(begin: list[str], out: Path, pattern: str) -> None:
    """Kills a run when a file of a preparation is there."""
    process = subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not list(out.glob(pattern)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        kill_tree(process)


def test_files_of_a_finished_run(undisturbed: Path) -> None:
    assert folders(undisturbed).keys() == METHODS.keys()
    for name, folder in folders(undisturbed).items():
        result = json.loads((folder / "result.json").read_text())
        assert [int(row["epoch"]) for row in rows(folder / "metrics.csv")] == [1, 2]
        assert result["epochs"] == EPOCHS
        if name == "kd":
            assert not (folder / "preparation.csv").exists()
            assert "preparation_seconds" not in result
            continue
        before = rows(folder / "preparation.csv")
        assert [int(row["epoch"]) for row in before] == list(range(1, BEFORE + 1))
        assert float(before[-1]["train_loss"]) < float(before[0]["train_loss"])
        seconds = sum(float(row["seconds"]) for row in before)
        assert result["preparation_seconds"] == pytest.approx(seconds)
        training_seconds = sum(float(row["seconds"]) for row in rows(folder / "metrics.csv"))
        assert result["seconds"] == pytest.approx(seconds + training_seconds)
        assert result["seconds_per_epoch"] == pytest.approx(training_seconds / EPOCHS)


@pytest.mark.slow
def test_status_table_verify_and_estimate(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    status = run("status", str(recipe), "--out", str(undisturbed))
    assert (status.returncode, status.stdout) == (0, "before: 5 trainings: 5 done\n"), status.stderr
    table = run("table", str(recipe), "--out", str(undisturbed), "--format", "csv")
    assert table.returncode == 0, table.stderr
    done = {row["label"]: row["done"] for row in csv.DictReader(io.StringIO(table.stdout)) if row["kind"] == "method"}
    assert done == dict.fromkeys(METHODS, "1")
    verified = run("verify", str(undisturbed), "--accuracy")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    for out, text in ((undisturbed, "nothing is left to train"), (tmp_path, "kd, ab, fsp, ft\n")):
        estimate = run("estimate", str(recipe), "--out", str(out), "--steps", "2")
        assert estimate.returncode == 0, estimate.stderr
        assert text in estimate.stdout
        assert "could not be timed" not in estimate.stdout and "only its student" not in estimate.stdout


@pytest.mark.slow
def test_killed_in_the_preparation_it_ends_with_the_same_bytes(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    begin = command("run", str(recipe), "--out", str(tmp_path), "--format", "csv")
    kill_in_preparation(begin, tmp_path, "before/*/preparation.csv")
    assert not list(tmp_path.glob("before/*/metrics.csv"))
    status = run("status", str(recipe), "--out", str(tmp_path))
    assert status.returncode == 1
    assert f" of {BEFORE} of the preparation done\n" in status.stdout
    again = subprocess.run(begin, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == weights(undisturbed)
    assert len(weights(tmp_path)) == len(METHODS) + 1
    for name, folder in folders(tmp_path).items():
        if name != "kd":
            assert [int(row["epoch"]) for row in rows(folder / "preparation.csv")] == list(range(1, BEFORE + 1))
            columns = ("epoch", "lr", "train_loss")
            for row, other in zip(
                rows(folder / "preparation.csv"),
                rows(folders(undisturbed)[name] / "preparation.csv"),
                strict=True,
            ):
                assert [row[column] for column in columns] == [other[column] for column in columns]


@pytest.mark.slow
def test_several_processes_resume_within_a_preparation(tmp_path: Path) -> None:
    tree(tmp_path / "data" / "mine", train=16)
    settings = RECIPE | {
        "dataset": {"name": "folder", "path": "mine"},
        "pipeline": {"size": 32},
        "batch_size": 12,
        "micro_batch": 6,
        "pairs": [{"teacher": "cifar_resnet14", "student": "cifar_resnet8"}],
        "methods": {"ft": {"preparation_epochs": BEFORE}},
    }
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(settings))
    begins = []
    for out in (tmp_path / "undisturbed", tmp_path / "killed"):
        begin = command("run", str(tmp_path / "before.yaml"), "--data", str(tmp_path / "data"), "--out", str(out))
        begins.append([*begin, "--workers", "0", "--devices", "2"])
    done = subprocess.run(begins[0], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    kill_in_preparation(begins[1], tmp_path / "killed", "before/*/checkpoint/epoch-000002-*.pt")
    assert not list((tmp_path / "killed").glob("before/*/metrics.csv"))
    done = subprocess.run(begins[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
