"""Workers as subprocesses of this machine."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from kd_bench.launch.launcher import RankEnvironment
from kd_bench.launch.worker_group import LoggedWorker
from kd_bench.launch.worker_protocol import Event, WorkerJob
from kd_bench.utils.allocator import allocator_variables
from kd_bench.utils.command_line import command_line
from kd_bench.utils.cuda_queues import queue_variables
from kd_bench.utils.python_process import module_command

#: Seconds that an idle worker has to end after its input was closed.
_CLOSE_SECONDS = 5.0

#: Characters of the command that a worker is told. Linux starts no process with a variable of more than 128 KiB.
_LONGEST_COMMAND = 30_000


class WorkerProcess(LoggedWorker):
    """A worker that runs as a subprocess, with additional environment variables, and appends its errors to the log.

    It has one job after the other, if the jobs allow that.
    """

    def __init__(self, job: WorkerJob, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._idle = False
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = worker_environment(job.threads) | dict(environment or {})
        # A session of its own, because the scheduler handles Ctrl-C.
        self._process = start_worker(job.to_line(), log, subprocess.PIPE, variables, start_new_session=True)
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        self._reader.start()

    @property
    def is_idle(self) -> bool:
        """Whether it has ended its job and can have another."""
        return self._idle and self._process.poll() is None

    def give(self, job: WorkerJob, log: Path) -> None:
        """Gives an idle worker another job, with a log of its own."""
        self._idle, self.log = False, log
        log.parent.mkdir(parents=True, exist_ok=True)
        _write_job(self._process, replace(job, log=str(log)).to_line())

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                self._events.put(json.loads(line))

    def poll(self) -> tuple[list[Event], int | None]:
        """Returns the events since the last call, and the exit code if the job has ended and all events are read."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=5)
        events = []
        while not self._events.empty():
            event = self._events.get()
            if event["event"] == "idle":
                self._idle, code = True, int(event["code"])
            else:
                events.append(event)
        return events, code

    def request_stop(self) -> None:
        """Sends SIGTERM, which asks the worker to save checkpoints and to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends the worker. Its trials resume from their last checkpoint in the next run."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends an idle worker."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


def start_rank(job: WorkerJob, device: str, log: Path, environment: RankEnvironment) -> WorkerProcess:
    """Starts one of several workers that share a cohort's batches. Ranks above 0 have logs beside that of rank 0."""
    rank = environment.rank
    job = replace(job, device=device, rank=rank, world_size=environment.world_size)
    return WorkerProcess(job, log.with_name(f"{log.stem}.{rank}{log.suffix}") if rank else log, environment.variables())


def free_port() -> int:
    """Returns a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def start_worker(
    job: str,
    log: Path,
    stdout: int | IO[bytes],
    environment: Mapping[str, str],
    *,
    start_new_session: bool = False,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a worker, appends its standard error to the log, and writes the job, a line of JSON, to its input.

    ``folder`` is its working folder; None for that of this process.
    """
    with open(log, "ab") as stderr:
        process = subprocess.Popen(
            module_command("kd_bench.launch.worker", folder),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **environment},
            start_new_session=start_new_session,
        )
    _write_job(process, job)
    return process


def _write_job(process: subprocess.Popen[bytes], job: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the worker has ended; exit code and log say why
        process.stdin.write(job.encode())
        process.stdin.flush()


def worker_environment(threads: int) -> dict[str, str]:
    """Returns the environment variables that a worker needs in addition to those of its machine."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return allocator_variables() | queue_variables() | limits | {"KD_BENCH_COMMAND": command_line()[:_LONGEST_COMMAND]}
