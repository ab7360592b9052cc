"""Failures of machines: too little memory, workers that die, a request to stop, full disks."""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from kd_bench.launch.worker import _classify, _run_job
from kd_bench.launch.worker_protocol import EventWriter, WorkerJob
from kd_bench.trials.folder import TrialFolder
from tests.launch.test_end_to_end import command, kill_tree, run, weights
from tests.training.parts import trial

RECIPE = {
    "dataset": {"name": "digits", "test_images": 200},
    "epochs": 3,
    "batch_size": 100,
    "trials": 1,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": {"none": {}},
}
GREEDY = '''
import torch
from kd_bench.methods.base import Method
from kd_bench.methods.parameters import NonNegative, PositiveCount
from kd_bench.types import Needs


class Greedy(Method):
    """Needs as much memory as so many of a process may have.

    Args:
        most: Of them in a process.
        weight: Of nothing.
    """

    family = "baseline"
    needs_teacher = False
    needs = Needs(teacher=frozenset())
    built = 0

    def __init__(self, pair, *, most: PositiveCount = 1, weight: NonNegative = 0.0):
        super().__init__(pair)
        self.most = most
        Greedy.built += 1

    def forward(self, student, teacher, batch):
        if Greedy.built > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return {"ce": self.label_loss(student, batch)}
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    done = run("run", str(root / "small.yaml"), "--out", str(root / "out"))
    assert done.returncode == 0, done.stderr
    return root / "out"


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Starts a run, and waits for its second epoch."""
    arguments = command("run", str(recipe), "--out", str(out), "--checkpoint-minutes", "0", *more)
    runner = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(out.glob("small/*/checkpoint/within-000001-*")):
        assert time.monotonic() < deadline
        assert runner.poll() is None, runner.communicate()
        time.sleep(0.01)
    return runner


@pytest.mark.slow
def test_the_cohort_of_a_killed_worker_continues_in_the_same_run(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runner = start(recipe, tmp_path / "out")
    try:
        for worker in psutil.Process(runner.pid).children(recursive=True):
            worker.kill()
        _, errors = runner.communicate(timeout=200)
    finally:
        kill_tree(runner)
    assert runner.returncode == 0, errors
    cause = "the worker was killed by signal 9 (the system does this when memory is full)"
    assert f"{cause}: started again from the last checkpoint, time 1 of 2" in errors
    assert weights(tmp_path / "out") == weights(undisturbed)


def test_a_request_to_stop_saves_checkpoints(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    runner = start(recipe, tmp_path / "out")
    try:
        runner.send_signal(signal.SIGTERM)
        _, errors = runner.communicate(timeout=30)
    finally:
        kill_tree(runner)
    assert runner.returncode == 143
    assert "stopped by SIGTERM; the same command goes on from here" in errors
    assert not weights(tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("small/[0-9a-f]*/checkpoint")
    assert list(folder.glob("within-*.pt"))
    again = run("run", str(recipe), "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path / "out") == weights(undisturbed)


@pytest.mark.slow
def test_too_many_students_for_the_memory_continue_in_smaller_cohorts(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    greedy = f"{tmp_path / 'greedy.py'}:Greedy"
    rows = {str(row): {"method": greedy, "hyperparameters": {"weight": float(row)}} for row in range(2)}
    recipe.write_text(yaml.safe_dump(RECIPE | {"methods": rows, "epochs": 1, "baseline": "0"}))
    done = run("run", str(recipe), "--out", str(tmp_path / "out"), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "out of memory: CUDA out of memory" in done.stderr
    assert "its 2 trials continue in two processes" in done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("small/*/result.json")]
    assert [result["cohort"] for result in results] == [1] * 2


def test_a_student_that_does_not_fit_alone_fails_with_the_reason(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY.replace("Greedy.built > self.most", "True"))
    rows = {"greedy": {"method": f"{tmp_path / 'greedy.py'}:Greedy"}}
    recipe.write_text(yaml.safe_dump(RECIPE | {"methods": rows, "baseline": "greedy"}))
    done = run("run", str(recipe), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_a_sentence() -> None:
    fault, reason = _classify(OSError(errno.ENOSPC, "No space left on device", "/out/x"))
    assert fault == "disk"
    assert reason == "/out/x: No space left on device; free some space and run the same command again"
    for message in (
        "DefaultCPUAllocator: not enough memory: you tried",
        "DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
    ):
        assert _classify(RuntimeError(message)) == ("memory", f"out of memory: {message}")
    assert _classify(ValueError("so\nand so")) == ("crash", "ValueError: so")


def test_a_folder_that_cannot_be_made_is_no_crash(tmp_path: Path) -> None:
    """A crash would be tried again, and have the name of a class in its message."""
    settings = trial("none")
    (tmp_path / settings.id).touch()
    output = io.StringIO()
    job = WorkerJob(str(tmp_path), [settings.settings()], None, None, None, "cpu", 1)
    assert _run_job(job, EventWriter(output)) == (1, False)
    reason = f"{tmp_path / settings.id}: cannot be created: File exists"
    assert json.loads(output.getvalue()) == {"event": "error", "reason": reason, "fault": "settings"}


def test_two_processes_cannot_both_publish_a_result(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    assert folder.finish({"status": "failed", "reason": "first"})
    assert not folder.finish({"status": "failed", "reason": "second"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "failed", "reason": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
