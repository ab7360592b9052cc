"""Cohorts on clusters: the same bytes with every executor, also if a machine dies."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from kd_bench.config.trial import PlannedTrial
from kd_bench.launch import cluster_executor, scheduler
from kd_bench.launch.cluster_executor import ClusterExecutor, RemoteJob
from kd_bench.launch.local_process import worker_environment
from kd_bench.launch.options import RunOptions, check_options, parse_executor_options
from kd_bench.launch.progress_display import ProgressDisplay
from kd_bench.launch.ray_executor import RayExecutor, _reachable_or_new
from kd_bench.launch.scheduler import Scheduler
from kd_bench.launch.slurm_executor import SlurmExecutor
from kd_bench.launch.worker_protocol import WorkerJob
from kd_bench.utils.command_line import python_call
from kd_bench.utils.errors import UserError
from kd_bench.utils.python_process import module_command
from tests.launch.test_end_to_end import command, kill_tree, run, weights
from tests.training.parts import trial

RECIPE = {
    "dataset": {"name": "digits", "test_images": 200},
    "epochs": 6,
    "batch_size": 100,
    "trials": 2,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}},
    "teacher_training": {"epochs": 2},
}


@pytest.fixture(autouse=True)
def keep_sigterm_handler() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    done = run("run", str(recipe), "--out", str(recipe.parent / "out"))
    assert done.returncode == 0, done.stderr
    return recipe.parent / "out"


def environments(out: Path) -> list[int]:
    """Returns how often each trial was resumed."""
    return [len(json.loads(path.read_text())["earlier"]) for path in out.glob("*/*/environment.json")]


@pytest.mark.slow
def test_slurm_jobs_give_the_same_bytes(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm = ("--executor", "slurm", "--executor-option", "cluster=local", "--device", "cpu", "--jobs", "2")
    done = run("run", str(recipe), "--out", str(tmp_path), *slurm)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == weights(undisturbed)
    assert environments(tmp_path) == [0] * 5
    assert "student alone" in done.stdout


@pytest.mark.slow
def test_ray_gives_the_same_bytes(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    begin = command("run", str(recipe), "--out", str(tmp_path), "--executor", "ray", "--device", "cpu", "--jobs", "2")
    done = subprocess.run(begin, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == weights(undisturbed)
    assert environments(tmp_path) == [0] * 5


@pytest.mark.slow
def test_a_worker_and_then_a_machine_are_lost(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Two Ray nodes on this machine: a worker of one is killed, and then all of the other node."""
    pytest.importorskip("ray")
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    runner = None
    try:
        address = cluster.stdout.readline().strip()
        options = ("--executor", "ray", "--executor-option", f"address={address}", "--device", "cpu", "--jobs", "2")
        begin = command("run", str(recipe), "--out", str(tmp_path), *options, "--retries", "5")
        runner = subprocess.Popen(begin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _wait(runner, lambda: list(tmp_path.glob("small/*/checkpoint/epoch-*.pt")))
        _workers(tmp_path)[0].kill()
        _wait(runner, lambda: len(list(tmp_path.glob("small/*/checkpoint/epoch-000002-*.pt"))) > 0)
        cluster.stdin.write("lose a node\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline().strip() == "lost"
        _, errors = runner.communicate(timeout=400)
    finally:
        for process in (runner, cluster):
            if process is not None:
                kill_tree(process)
    assert runner.returncode == 0, errors
    assert weights(tmp_path) == weights(undisturbed)
    assert "started again from the last checkpoint" in errors


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(second, allow_graceful=False)
    print("lost", flush=True)
"""


def _wait(runner: subprocess.Popen, until) -> None:
    deadline = time.monotonic() + 300
    while not until():
        assert time.monotonic() < deadline
        assert runner.poll() is None, runner.communicate()
        time.sleep(0.02)


def _workers(out: Path) -> list[psutil.Process]:
    """Returns the workers whose log is in the folder."""
    workers = []
    for process in psutil.process_iter():
        try:
            if "kd_bench.launch.worker" in process.cmdline() and any(
                str(out) in file.path for file in process.open_files()
            ):
                workers.append(process)
        except psutil.Error:
            continue
    return workers


def test_a_remote_job_writes_its_files(tmp_path: Path) -> None:
    """The worker's output goes to the files; a worker without a job ends with exit code 1."""
    job = RemoteJob("no job\n", str(tmp_path / "log"), str(tmp_path / "events"), {})
    assert job() == 1
    assert "Traceback" in (tmp_path / "log").read_text()
    assert (tmp_path / "events").read_text() == ""


def test_a_request_to_stop_ends_as_soon_as_the_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends within a second; a job that waited for the rest of the time could be killed meanwhile."""
    monkeypatch.setattr(cluster_executor, "start_worker", lambda *_, **__: _python("import time; time.sleep(60)"))
    job = RemoteJob("", str(tmp_path / "log"), str(tmp_path / "events"), {})
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    assert job() == -signal.SIGTERM
    assert time.monotonic() - begin < 10


def test_a_task_of_ray_saves_checkpoints_when_it_is_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    polls = iter([interrupt])
    poll = subprocess.Popen.poll
    monkeypatch.setattr(cluster_executor, "start_worker", lambda *_, **__: _python("import time; time.sleep(60)"))
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: next(polls, lambda: poll(self))())
    assert RemoteJob("", str(tmp_path / "log"), str(tmp_path / "events"), {})() == -signal.SIGTERM


def _python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_machine_without_the_results_folder_is_named(tmp_path: Path) -> None:
    """Another attempt would fail, too, so there is none."""
    outcome = RemoteJob("", str(tmp_path / "x" / "log"), str(tmp_path / "x" / "events"), {})()
    missing = f"{tmp_path / 'x' / 'events'}: No such file or directory; all machines must share the results folder"
    assert outcome == f"machine {socket.gethostname()}: {missing}"

    class Cluster(ClusterExecutor):
        def submit(self, work: RemoteJob) -> Any:
            return "job"

        def exit_code(self, job: Any) -> int | str | None:
            return outcome

    group = Cluster(1, 0).start(WorkerJob(str(tmp_path), [], None, None, None, "cpu", 1), tmp_path / "log")
    assert group.poll() == ([{"event": "error", "reason": outcome, "fault": "settings"}], 1)


def test_a_worker_has_the_working_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins may be named relative to it, and Ray starts tasks in another folder."""
    (tmp_path / "command").mkdir()
    monkeypatch.chdir(tmp_path / "command")
    job = RemoteJob("", str(tmp_path / "log"), str(tmp_path / "events"), {})
    monkeypatch.chdir(tmp_path)
    folders = []

    def start(*_: object, folder: Path | None) -> subprocess.Popen[bytes]:
        folders.append(folder)
        return _python("")

    monkeypatch.setattr(cluster_executor, "start_worker", start)
    job()
    (tmp_path / "command").rmdir()  # it is not shared with this machine
    job()
    assert folders == [tmp_path / "command", None]
    assert module_command("x", tmp_path / "command")[-1] == str(tmp_path / "command")


def test_a_long_call_in_python_starts_workers() -> None:
    """Linux refuses a variable of more than 128 KiB."""
    with python_call(f"kd_bench.compare({'é' * 200_000})"):
        environment = worker_environment(1)
        subprocess.run([sys.executable, "-c", ""], check=True, env=environment)
    assert environment["KD_BENCH_COMMAND"].startswith("kd_bench.compare(éé")


@pytest.mark.parametrize(("gpus", "share"), [(0.5, 0.5), (1.0, None), (0.0, None)])
def test_cohorts_that_share_a_gpu_get_shares_of_its_memory(gpus: float, share: float | None, tmp_path: Path) -> None:
    jobs = []

    class Cluster(ClusterExecutor):
        def submit(self, work: RemoteJob) -> Any:
            jobs.append(json.loads(work._job))

    Cluster(1, gpus).start(WorkerJob(str(tmp_path), [], None, None, None, "cpu", 1), tmp_path / "log")
    assert jobs[0]["memory_fraction"] == share


def test_a_cluster_chooses_the_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda:1: --executor slurm chooses the device of each cohort"):
        check_options(RunOptions(out=tmp_path, executor="slurm", device="cuda:1"))
    check_options(RunOptions(out=tmp_path, executor="slurm", device="cuda"))


def test_processes_with_one_number_may_check_the_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two containers they often have: the other one removes the file first."""
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: (write(self, content), self.unlink()))
    check_options(RunOptions(out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_job_that_slurm_refuses_is_a_sentence() -> None:
    class Refusing:
        def submit(self, work: RemoteJob) -> Any:
            raise RuntimeError("sbatch: error: Invalid partition\nsbatch: error: refused")

    executor = SlurmExecutor.__new__(SlurmExecutor)
    executor._executor = Refusing()
    with pytest.raises(UserError, match="cannot be submitted: sbatch: error: Invalid partition sbatch: error: refused"):
        executor.submit(RemoteJob("", "", "", {}))


@pytest.mark.parametrize("ends_workers", [True, False])
def test_submitted_jobs_go_on_without_the_command_if_they_can(
    ends_workers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of SLURM do, and the next command finds them by their leases; those of Ray end."""
    cancelled: list[Any] = []

    class Cluster(ClusterExecutor):
        def submit(self, work: RemoteJob) -> Any:
            return "job"

        def exit_code(self, job: Any) -> int | None:
            return None

        def cancel(self, job: Any) -> None:
            cancelled.append(job)

    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "ends_workers", ends_workers)
    monkeypatch.setattr(scheduler, "_make_executor", lambda *_: Cluster(1, 0))
    monkeypatch.setattr(scheduler, "STOP_SECONDS", 0.0)
    output = io.StringIO()
    display = ProgressDisplay("r", Console(file=output, width=200))
    monkeypatch.setattr(display, "refresh", press_ctrl_c)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Scheduler("r", RunOptions(out=tmp_path), display).run([PlannedTrial(trial("none"), "none", None)])
    assert cancelled == ["job"] * ends_workers
    assert ("r: submitted jobs go on; the same command finds them again" in output.getvalue()) != ends_workers
    assert signal.getsignal(signal.SIGTERM) is handler
    assert SlurmExecutor.ends_workers is False and RayExecutor.ends_workers is True


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (-9, "the cluster ended its job, or its machine was lost"),
        (1, "the worker ended with code 1: out of luck"),
        (0, "the worker ended without an error, but did not finish its trials"),
    ],
)
def test_the_end_of_a_job_is_a_sentence(code: int, sentence: str, tmp_path: Path) -> None:
    class Cluster(ClusterExecutor):
        def submit(self, work: RemoteJob) -> Any:
            return "job"

        def exit_code(self, job: Any) -> int | None:
            return code

    (tmp_path / "log").write_text("Traceback\nout of luck\n\n")
    group = Cluster(1, 0).start(WorkerJob(str(tmp_path), [], None, None, None, "cpu", 1), tmp_path / "log")
    assert group.poll() == ([], code)
    assert group.describe_exit() == sentence


def test_options() -> None:
    assert parse_executor_options("slurm", ["minutes=30", "partition=gpu"]) == {"minutes": 30, "partition": "gpu"}
    assert parse_executor_options("ray", ["gpus=0.5"]) == {"gpus": 0.5}
    for executor, options, message in (
        ("sluurm", [], "did you mean 'slurm'"),
        ("ray", ["gpu=1"], "did you mean 'gpus'"),
        ("slurm", ["minutes=long"], "minutes should be a whole number from 1 to 1,000,000 .it is 'long'"),
        ("slurm", ["minutes=0"], "minutes should be a whole number from 1"),
        ("slurm", ["gpus=-1"], "gpus should be a whole number from 0"),
        ("ray", ["gpus=nan"], "gpus should be a number from 0"),
        ("ray", ["cpus=inf"], "cpus should be a number from 0"),
        ("slurm", ["partition="], "the value is missing"),
        ("slurm", ["cpus=1", "cpus=2"], "cpus is given twice"),
        ("slurm", ["minutes"], "should be KEY=VALUE"),
    ):
        with pytest.raises(UserError, match=message):
            parse_executor_options(executor, options)


def test_a_cluster_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray leaves the address of a cluster that was killed behind, and would wait for it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _reachable_or_new() == "local"
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        file.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert _reachable_or_new() is None
    assert _reachable_or_new() == "local"
    file.write_text("no address")
    assert _reachable_or_new() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert _reachable_or_new() is None
