"""A worker that has one cohort after the other: the same bytes as in a worker of its own, and nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from kd_bench.config.trial import Trial
from kd_bench.launch.executor import LocalExecutor
from kd_bench.launch.job_isolation import isolated
from kd_bench.launch.local_process import worker_environment
from kd_bench.launch.options import RunOptions
from kd_bench.launch.worker_group import WorkerGroup
from kd_bench.launch.worker_protocol import BUSY, Event, WorkerJob
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from tests.training.parts import trial

JOB = WorkerJob(folder="", trials=[], weights=None, teacher=None, data=None, device="cpu", threads=1)
SMALL: dict[str, Any] = {"dataset": {"name": "digits", "train_images": 200, "test_images": 100}, "epochs": 1}
#: Cohorts of two recipes, which differ in everything that a process could remember: network, data set, seed, precision.
COHORTS = (
    [
        trial("none", **SMALL, model="cifar_wrn_16_1", batch_size=50, seed=1),
        trial("none", **SMALL, batch_size=50, seed=1, ema=0.9),
    ],
    [trial("none", **SMALL | {"dataset": {"name": "digits", "classes": 4}}, batch_size=32, augment={"cutout": 8})],
    [trial("none", **SMALL, precision="bfloat16", optimizer={"name": "adamw", "lr": 0.01})],
)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(RunOptions(out=tmp_path, jobs=1, device="cpu"), None)
    yield executor
    executor.close()


def job(out: Path, trials: list[Trial], **changes: Any) -> WorkerJob:
    return replace(JOB, folder=str(out), trials=[student.settings() for student in trials], **changes)


def start(executor: LocalExecutor, job: WorkerJob, log: str = "one") -> tuple[WorkerGroup, psutil.Process]:
    group = executor.start(job, Path(job.folder) / "logs" / f"{log}.log")
    return group, psutil.Process(executor._workers[id(group)]._process.pid)


def finish(executor: LocalExecutor, group: WorkerGroup) -> tuple[list[Event], int]:
    events, code, deadline = [], None, time.monotonic() + 120
    while code is None:
        assert time.monotonic() < deadline
        new, code = group.poll()
        events += new
        time.sleep(0.02)
    executor.release(group)
    return events, code


@pytest.mark.slow
def test_the_second_cohort_of_a_process_has_the_bytes_of_one_in_a_process_of_its_own(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    options = RunOptions(out=tmp_path, jobs=1, device="cpu")
    processes = set()
    for number, cohort in enumerate(COHORTS):
        group, process = start(executor, job(tmp_path / "same", cohort), log=str(number))
        assert finish(executor, group)[1] == 0
        processes.add(process)
    assert len(processes) == 1
    for cohort in COHORTS[1:]:
        alone = LocalExecutor(options, None)
        group, process = start(alone, job(tmp_path / "own", cohort))
        assert finish(alone, group)[1] == 0
        alone.close()
        assert process not in processes
    same, separate_weights = (
        {path.parent.name: path.read_bytes() for path in (tmp_path / which).glob("*/student.safetensors")}
        for which in ("same", "own")
    )
    assert len(separate_weights) == sum(map(len, COHORTS[1:]))
    assert separate_weights.items() < same.items()
    for settings, *_ in COHORTS[1:]:
        assert peak(tmp_path / "same", settings) == pytest.approx(peak(tmp_path / "own", settings), rel=0.1)


def peak(out: Path, settings: Trial) -> int:
    return int((TrialFolder(out / settings.id).result() or {})["peak_memory_bytes"])


@pytest.mark.slow
def test_each_job_has_its_log_and_the_worker_ends_with_the_executor(executor: LocalExecutor, tmp_path: Path) -> None:
    missing = trial("none", **SMALL | {"dataset": {"name": "folder", "path": "missing", "size": 32}})
    group, process = start(executor, job(tmp_path, COHORTS[1]), log="first")
    assert finish(executor, group)[1] == 0
    assert process.is_running()
    group, second = start(executor, job(tmp_path, COHORTS[1]), log="again")  # nothing is left to train
    assert (second, finish(executor, group)) == (process, ([{"event": "claimed", "trials": [], "epochs": 0}], 0))

    group, third = start(executor, job(tmp_path, [missing]), log="failed")
    events, code = finish(executor, group)
    assert (third, code) == (process, 1)
    assert events[-1]["fault"] == "settings"
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()  # a worker that has failed has no other job

    group, fourth = start(executor, job(tmp_path, COHORTS[2]), log="last")
    assert fourth != process
    assert finish(executor, group)[1] == 0
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"first.log", "again.log", "failed.log", "last.log"}
    executor.close()
    assert not psutil.wait_procs([fourth], timeout=10)[1]


def test_errors_are_in_the_log_of_their_job(executor: LocalExecutor, tmp_path: Path) -> None:
    group, _ = start(executor, job(tmp_path, []), log="empty")
    assert finish(executor, group)[1] == 0
    group, _ = start(executor, job(tmp_path, [COHORTS[1][0]], threads=-1), log="wrong")
    events, code = finish(executor, group)
    assert (code, events[-1]["fault"]) == (1, "crash")
    lines = (tmp_path / "logs" / "wrong.log").read_text().splitlines()
    assert any("Traceback" in line for line in lines)
    assert (tmp_path / "logs" / "empty.log").read_text() == ""
    assert lines[-1] in events[-1]["reason"]
    assert group.describe_exit() == f"the worker ended with code 1: {lines[-1]}"


def test_a_worker_whose_trials_another_process_holds_can_have_another_job(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    (settings,) = COHORTS[1]
    folder = TrialFolder(tmp_path / settings.id)
    folder.create(settings)
    lease = acquire_lease(folder.path, LeaseMonitor())
    assert lease is not None
    group, process = start(executor, job(tmp_path, [settings]))
    assert finish(executor, group) == ([], BUSY)
    lease.release(finished=False)
    group, again = start(executor, job(tmp_path, [settings]))
    assert finish(executor, group)[1] == 0
    assert again == process


@pytest.mark.parametrize("why", ["killed", "fresh"])
def test_a_job_gets_a_new_worker(executor: LocalExecutor, tmp_path: Path, why: str) -> None:
    group, process = start(executor, job(tmp_path, []))
    finish(executor, group)
    if why == "killed":
        process.kill()
        executor._idle[("cpu",)][0]._process.wait()
    group, other = start(executor, job(tmp_path, COHORTS[1], fresh=why == "fresh"))
    assert other != process
    assert not psutil.wait_procs([process], timeout=10)[1]
    assert finish(executor, group)[1] == 0


def test_a_worker_that_was_asked_to_stop_ends(executor: LocalExecutor, tmp_path: Path) -> None:
    long = trial("none", **SMALL | {"epochs": 1000})
    group, process = start(executor, job(tmp_path, [long]))
    while not list(tmp_path.glob("*/metrics.csv")):
        assert group.poll()[1] is None
        time.sleep(0.05)
    group.request_stop()
    events, code = finish(executor, group)
    assert (code, events[-1]["event"]) == (0, "left")
    assert not psutil.wait_procs([process], timeout=10)[1]
    assert not executor._idle[("cpu",)]


def test_code_of_plugins_is_the_last_that_a_worker_runs() -> None:
    settings = trial("none").settings()
    assert not replace(JOB, trials=[settings]).runs_plugins
    for key, value in (
        ("model_source", "0" * 64),
        ("dataset", settings["dataset"] | {"source": "0" * 64}),
        ("method", settings["method"] | {"source": "0" * 64}),
        ("augment", settings["augment"] | {"own_source": "0" * 64}),
        ("teacher", settings | {"model_source": "0" * 64}),
    ):
        assert replace(JOB, trials=[settings, settings | {key: value}]).runs_plugins


def test_a_job_leaves_no_settings_behind() -> None:
    def state() -> list[Any]:
        handlers = (list(logging.root.handlers), signal.getsignal(signal.SIGTERM))
        return [dict(os.environ), list(warnings.filters), *handlers]

    before = state()
    with isolated(replace(JOB, last=False)):
        os.environ["KD_BENCH_COMMAND"] = "another"
        os.environ["PATH"] = ""
        warnings.simplefilter("ignore")
        logging.root.addHandler(logging.NullHandler())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert state() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset")
def test_a_job_is_not_charged_for_the_memory_of_the_one_before() -> None:
    code = (
        "import torch; from kd_bench.launch.job_isolation import isolated;"
        "from kd_bench.launch.worker_protocol import WorkerJob; from kd_bench.trials.environment import peak_memory;"
        "job = WorkerJob('', [], None, None, None, 'cpu', 1, last=False); peaks = []\n"
        "for size in (2**18, 2**26, 2**18):\n"  # 1 MiB, 256 MiB, 1 MiB, as small tensors, which the C library keeps
        "    with isolated(job):\n"
        "        kept = [torch.ones(2**16) for _ in range(size // 2**16)]; del kept; peaks += [peak_memory('cpu')]\n"
        "print(peaks)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **worker_environment(1)}, capture_output=True, check=True
    )
    small, large, again = json.loads(done.stdout)
    assert large > small + 200 * 2**20
    assert again < small + 30 * 2**20
