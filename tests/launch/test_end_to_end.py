"""Complete runs from the command line, on digits, with worker processes."""

import csv
import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

RECIPE = {
    "dataset": {"name": "digits", "test_images": 200},
    "epochs": 5,
    "batch_size": 100,
    "trials": 1,
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "cosine"},
    "teacher_training": {"epochs": 3},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {  # methods with state; tests/training resumes all methods
        "none": {},
        "kd": {},
        "ikl_kd": {"weights": "class", "tau": 4, "warmup_epochs": 2},
        "crd": {"negatives": 50},
        "ofd": {},
        "reviewkd": {"warmup_epochs": 2, "max_mid_channels": 16},
    },
}
#: One student per method, and their teacher.
NETWORKS = len(RECIPE["methods"]) + 1
WEIGHTS = "student.safetensors"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kd_bench", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills the process and all its children with SIGKILL."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=10)


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob(f"*/*/{WEIGHTS}")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = run("run", str(recipe), "--out", str(out), "--format", "csv")
    assert done.returncode == 0, done.stderr
    return out


def test_files_of_an_uninterrupted_run(recipe, undisturbed):
    folders = sorted(undisturbed.glob("small/[0-9a-f]*")) + sorted(undisturbed.glob("teachers/[0-9a-f]*"))
    assert len(folders) == NETWORKS
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names == {"trial.json", "environment.json", "metrics.csv", "result.json", WEIGHTS}
        result = json.loads((folder / "result.json").read_text())
        rows = list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))
        assert [int(row["epoch"]) for row in rows] == list(range(1, result["epochs"] + 1))
        assert result["status"] == "done"
        assert result["top1_last"] == float(rows[-1]["top1"])
        assert len(result["class_top1_last"]) == 10
        assert result["class_names"] == list("0123456789") and len(result["confusion_last"]) == 10
        assert sum(result["class_top1_last"]) / 10 == pytest.approx(result["top1_last"], abs=2.0)  # some 20 images each
        assert result["top1_best"] == max(float(row["top1"]) for row in rows)
        assert float(rows[result["best_epoch"] - 1]["top1"]) == result["top1_best"]
        assert result["parameters"] == sum(
            value.numel() for key, value in load_file(folder / WEIGHTS).items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )  # fmt: skip
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["threads"] == 1
        assert environment["earlier"] == []
        assert environment["packages"]["torch"]


def test_running_again_trains_nothing_and_is_quick(recipe, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    start = time.monotonic()
    again = run("run", str(recipe), "--out", str(undisturbed))
    seconds = time.monotonic() - start
    assert again.returncode == 0
    assert "nothing to train" in again.stderr
    assert "student alone" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before
    assert seconds < 20  # a worker alone would take several seconds more than this needs; usually about one


def test_killed_three_times_it_ends_with_the_same_bytes(recipe, undisturbed, tmp_path):
    # Other moments in every run of the tests, because the result must not depend on them.
    chance = random.Random(time.time_ns())
    killed_in_training = 0
    for _ in range(3):
        runner = subprocess.Popen(
            command("run", str(recipe), "--out", str(tmp_path)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = len(list(tmp_path.glob("*/*/metrics.csv")))
        deadline = time.monotonic() + 60
        while (
            len(list(tmp_path.glob("*/*/metrics.csv"))) <= min(before, 2)
            and runner.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.0))
        killed_in_training += runner.poll() is None
        kill_tree(runner)
    assert killed_in_training, "the run was over before it could be killed"
    last = run("run", str(recipe), "--out", str(tmp_path), "--format", "csv")
    assert last.returncode == 0, last.stderr
    assert weights(tmp_path) == weights(undisturbed)
    assert len(weights(undisturbed)) == NETWORKS
    assert not list(tmp_path.rglob("*.pt"))
    for path in tmp_path.glob("*/*/metrics.csv"):
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))


def test_students_alone_need_no_teacher(recipe, tmp_path):
    arguments = ("run", str(recipe), "--out", str(tmp_path), "--only", "method=none", "--set", "epochs=1")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(weights(tmp_path)) == 1
    assert not (tmp_path / "teachers").exists()


@pytest.mark.slow  # tests/training has it of all methods, in one process
def test_cohort_size_does_not_change_the_bytes(recipe, undisturbed, tmp_path):
    only = "method=none,kd,crd"
    done = run("run", str(recipe), "--out", str(tmp_path), "--only", only, "--cohort-size", "1", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert len(weights(tmp_path)) == 4
    assert weights(tmp_path).items() <= weights(undisturbed).items()


def test_workers_end_with_their_scheduler(recipe, tmp_path):
    runner = subprocess.Popen(
        command("run", str(recipe), "--out", str(tmp_path)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not workers and time.monotonic() < deadline:
        workers = psutil.Process(runner.pid).children(recursive=True)
        time.sleep(0.05)
    assert workers
    time.sleep(1)
    runner.kill()
    runner.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.slow
def test_four_at_once_share_the_work(recipe, undisturbed, tmp_path):
    arguments = command("run", str(recipe), "--out", str(tmp_path), "--jobs", "1", "--format", "csv")
    environment = os.environ | {"COLUMNS": "80"}
    runners = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    outputs = [runner.communicate(timeout=400) for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * 4, [errors for _, errors in outputs]
    assert weights(tmp_path) == weights(undisturbed)
    # Each trial was trained by one process without interruption: no other wrote an environment or finished it.
    finished = [
        line for _, errors in outputs for line in errors.splitlines() if "done, " in line and "another" not in line
    ]
    assert len(finished) == NETWORKS
    for path in tmp_path.glob("*/*/environment.json"):
        assert json.loads(path.read_text())["earlier"] == []
    tables = {output for output, _ in outputs}
    assert len(tables) == 1


@pytest.mark.slow
def test_a_corrupt_checkpoint_is_reported_and_the_run_continues(recipe, undisturbed, tmp_path):
    arguments = ("run", str(recipe), "--out", str(tmp_path), "--only", "method=none")
    runner = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("small/*/checkpoint/epoch*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    kill_tree(runner)
    checkpoints = sorted(tmp_path.glob("small/*/checkpoint/epoch*"))
    assert checkpoints, "the trial was over before it could be killed"
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:-100])
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "this checkpoint is corrupt" in line]
    assert len(notes) == 1
    assert checkpoints[-1].name in notes[0]
    assert "continues from epoch" in notes[0] or "starts again from the beginning" in notes[0]
    trained = weights(tmp_path)
    assert trained
    assert trained.items() <= weights(undisturbed).items()


def test_a_student_that_diverges_is_recorded_and_the_others_continue(recipe, tmp_path):
    overrides = ["--set", "methods.ikl_kd={alpha: 1.0e+30, warmup_epochs: 0}", "--set", "epochs=2"]
    overrides += ["--only", "method=kd,ikl_kd"]
    arguments = ("run", str(recipe), "--out", str(tmp_path), *overrides, "--set", "teacher_training.epochs=1")
    done = run(*arguments)
    assert done.returncode == 1
    assert "no longer finite in epoch 1" in done.stderr
    assert "Traceback" not in done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("small/*/result.json")]
    assert sorted(result["status"] for result in results) == ["done", "failed"]
    assert "failed" in done.stdout
    again = run(*arguments)
    assert again.returncode == 1
    assert "nothing to train" in again.stderr


def test_a_killed_worker_is_reported(recipe, tmp_path):
    arguments = command(
        "run", str(recipe), "--out", str(tmp_path), "--only", "method=none", "--set", "epochs=1000", "--retries", "0"
    )
    runner = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("small/*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in psutil.Process(runner.pid).children(recursive=True):
        worker.kill()
    _, errors = runner.communicate(timeout=120)
    assert runner.returncode == 1
    assert "killed by signal 9" in errors
    assert "Traceback" not in errors
