"""Several processes that share a cohort's batches: the weights of one process, all launchers, and exact resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load

from kd_bench.config.load import read_recipe
from kd_bench.launch import launcher_ranks
from kd_bench.launch.launcher import RankEnvironment, check_divisible, launcher_environment, world_size
from kd_bench.launch.local_process import free_port
from kd_bench.plan import plan
from kd_bench.utils.errors import RunFailed, UserError
from tests.data.photos import spoil, tree
from tests.launch.test_end_to_end import command, kill_tree, run, weights

#: Without batch norms, whose running statistics depend on the order of the micro-batches in a process.
RECIPE = {
    "dataset": {"name": "folder", "path": "mine"},
    "pipeline": {"size": 32, "mixup": 0.2, "cutmix": 1.0, "corrupt": "skip"},
    "epochs": 2,
    "batch_size": 12,
    "micro_batch": 6,
    "trials": 1,
    "optimizer": {"name": "adamw", "lr": 0.001},
    "schedule": {"name": "cosine"},
    "ema": 0.9,
    "pairs": [{"teacher": "test_vit.r160_in1k", "student": "test_convnext.r160_in1k"}],
    "methods": {
        "kd": {},
        "dist": {},
        "ikl_kd": {"weights": "class", "tau": 1},
        "crd": {"negatives": 8},
    },
    "teacher_training": {"epochs": 1, "ema": None},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    tree(root / "data" / "mine", train=16)
    spoil(root / "data" / "mine" / "train" / "bee" / "003.JPEG")
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def arguments(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--data", str(recipe.parent / "data"), "--out", str(out), "--workers", "0", *more]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    out = recipe.parent / "alone"
    done = run(*arguments(recipe, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def both(recipe: Path) -> Path:
    out = recipe.parent / "both"
    done = run(*arguments(recipe, out, "--devices", "2"))
    assert done.returncode == 0, done.stderr
    return out


def results(out: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/*/result.json")}


def assert_same(out: Path, expected: Path) -> None:
    """Compares weights to 1e-6 and counts exactly."""
    actual, wanted = weights(out), weights(expected)
    assert actual.keys() == wanted.keys()
    assert len(actual) == len(RECIPE["methods"]) + 1
    for trial, content in actual.items():
        for name, value in load(wanted[trial]).items():
            torch.testing.assert_close(load(content)[name], value, rtol=0, atol=1e-6, msg=f"{trial} {name}")
    wanted_results = results(expected)
    for trial, result in results(out).items():
        for key in ("top1_last", "top5_last", "corrupt_images", "corrupt_files"):
            assert result[key] == wanted_results[trial][key], key


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(alone: Path, both: Path) -> None:
    assert_same(both, alone)
    for path in both.glob("mine/*/environment.json"):
        assert json.loads(path.read_text())["processes"] == 2
    for result in results(both).values():
        assert result["corrupt_images"] == 1
        assert result["corrupt_files"] == ["train/bee/003.JPEG"]


def _wait_for_first_epoch(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until a trial in the folder has a checkpoint of its first epoch, while the process runs."""
    deadline = time.monotonic() + 200
    while not list(folder.glob("*/checkpoint/epoch-000001-*.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_next_start_resumes(recipe: Path, both: Path, tmp_path: Path) -> None:
    begin = command(*arguments(recipe, tmp_path, "--devices", "2", "--retries", "0"))
    process = subprocess.Popen(begin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_first_epoch(process, tmp_path / "mine")
        workers = [
            child for child in psutil.Process(process.pid).children() if "kd_bench.launch.worker" in child.cmdline()
        ]
        for worker in workers:
            if worker.environ()["RANK"] == "1":
                worker.kill()
        _, errors = process.communicate(timeout=60)
    finally:
        kill_tree(process)
    assert process.returncode == 1
    assert "process 2 of 2 was killed by signal 9" in errors
    assert "Traceback" not in errors
    assert weights(tmp_path).keys() < weights(both).keys()
    again = subprocess.run(begin, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == weights(both)


def assert_among(out: Path, expected: Path) -> None:
    actual, wanted = weights(out), weights(expected)
    assert len(actual) == 2
    for trial, content in actual.items():
        for name, value in load(wanted[trial]).items():
            torch.testing.assert_close(load(content)[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_under_torchrun(recipe: Path, alone: Path, tmp_path: Path) -> None:
    begin = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    begin += ["-m", "kd_bench", *arguments(recipe, tmp_path / "out", "--only", "method=kd")]
    done = subprocess.run(begin, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert_among(tmp_path / "out", alone)
    assert done.stdout.count("on folder mine\n") == 1  # only rank 0 prints


@pytest.mark.slow
def test_under_srun_on_two_machines(recipe: Path, alone: Path, tmp_path: Path) -> None:
    shared = {
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    begin = command(*arguments(recipe, tmp_path / "out", "--nodes", "2", "--only", "method=kd"))
    tasks = [
        subprocess.Popen(
            begin,
            env=os.environ | shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [task.communicate(timeout=200) for task in tasks]
    finally:
        for task in tasks:
            kill_tree(task)
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert_among(tmp_path / "out", alone)
    assert "on folder mine" in outputs[0][0]
    assert outputs[1][0] == ""


@pytest.mark.slow
def test_all_processes_save_checkpoints_when_the_launcher_is_stopped(recipe: Path, tmp_path: Path) -> None:
    """A launcher sends the signal to all of them. They need each other to save the state within an epoch."""
    long = recipe.with_name("long.yaml")
    pairs = [{"teacher": None, "student": "test_convnext.r160_in1k"}]
    changes = {"epochs": 1000, "pairs": pairs, "methods": {"none": {}}, "teacher_training": {}}
    long.write_text(yaml.safe_dump(RECIPE | changes))
    begin = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    begin += ["-m", "kd_bench", *arguments(long, tmp_path)]
    process = subprocess.Popen(begin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_first_epoch(process, tmp_path / "long")
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        kill_tree(process)
    assert errors.count("kd-bench: stopped by SIGTERM; the same command goes on from here") == 2
    assert len(list(tmp_path.glob("long/*/checkpoint/within-*.pt"))) == 1


def test_a_process_that_does_not_end_its_worker_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun, unlike torchrun, lets the others go on if one dies, and these waited for it for ever."""

    class Store:
        def check(self, keys: list[str]) -> bool:
            return False

        def set(self, key: str, value: str) -> None:
            assert (key, value) == ("kill/7", "")

    monkeypatch.setattr(launcher_ranks, "_LOST_SECONDS", 0.05)
    worker = launcher_ranks._StoreWorker(Store(), 7, 1)  # type: ignore[arg-type]
    time.sleep(0.1)
    assert worker.poll() == ([], None)  # it may still train
    worker.kill()
    assert worker.poll() == ([], None)
    time.sleep(0.1)
    worker.kill()  # which is repeated at every look
    with pytest.raises(RunFailed, match="process 1 has died or does not answer"):
        worker.poll()


def test_the_first_process_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that found all trials done ended, with the store, before those of a slower machine had connected."""
    environment = RankEnvironment(0, 2, 0, 1, "127.0.0.1", free_port())
    code = (
        "import os, sys, time; from kd_bench.launch import launcher_ranks as ranks\n"
        "from kd_bench.launch.launcher import RankEnvironment\n"
        f"ranks.join_launcher(RankEnvironment(1, 2, 0, 1, '127.0.0.1', {environment.master_port}), 'cpu')"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        first = launcher_ranks.LauncherRankZero(environment, "cpu")
        assert first._store.check(["joined/1"])
        first.close()
        _, errors = other.communicate(timeout=60)
    finally:
        kill_tree(other)
    assert other.returncode == 0, errors
    monkeypatch.setattr(launcher_ranks, "_JOIN_SECONDS", 0.5)
    with pytest.raises(RunFailed, match=r"of 3 processes \(from 0 to 2\), these have not started in 0 minutes: 2; see"):
        launcher_ranks._wait_for_ranks(first._store, 3)


def planned(**changes: object):
    content = RECIPE | {
        "name": "mine",
        "methods": {"none": {}},
        "pairs": [{"teacher": None, "student": "cifar_resnet8"}],
    }
    return plan(read_recipe(content | changes), "mine")


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({"micro_batch": None}, 2, "see 12 images at once, so 2 processes cannot .* --set micro_batch=6"),
        ({}, 5, "5 processes cannot share its batch of 12, which is in 2 parts$"),
        ({"sync_batch_norm": True}, 1, "needs 2 processes, one each .there would be 1"),
        ({"pipeline": None, "dataset": "digits", "micro_batch": 6}, 2, "digits is held in memory"),
    ],
)
def test_batches_that_processes_cannot_share(changes: dict, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_divisible(planned(**changes), count)


def test_batches_that_processes_can_share() -> None:
    check_divisible(planned(), 1)
    check_divisible(planned(), 2)
    check_divisible(planned(sync_batch_norm=True), 2)
    check_divisible(planned(sync_batch_norm=True, micro_batch=None), 1)


def test_environment_of_launchers() -> None:
    assert launcher_environment({}) is None
    assert launcher_environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # a batch script
    torchrun = {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "one",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    launcher = launcher_environment(torchrun)
    assert launcher == RankEnvironment(5, 8, 1, 4, "one", 29500, agent_store=True)
    assert launcher is not None
    assert launcher.nodes == 2
    assert world_size(None, None, launcher) == world_size(4, 2, launcher) == 8
    assert world_size(3, None, None) == 3
    with pytest.raises(UserError, match="--devices 8: the launcher has started processes for 4"):
        world_size(8, None, launcher)
    with pytest.raises(UserError, match="--nodes 2: start the command once per device"):
        world_size(None, 2, None)
