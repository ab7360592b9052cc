"""Executors that start cohorts on other machines: Ray and SLURM.

Both only find a place and start the worker there. What is told comes by a file beside the log, in the results folder,
which all machines must share; who may write a trial's folder is the lease's to say; and whether to try again is the
runner's, as it is for this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kd_bench.launch import local_process
from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import UserError, unknown

#: Cohorts that are handed over at once; the cluster has them wait.
MANY = 1000

#: Seconds that a worker has to keep where it is once its machine gives notice.
NOTICE = 25.0

#: What each executor can be told, with the type of it.
OPTIONS: dict[str, dict[str, type]] = {
    "local": {},
    "ray": {"address": str, "gpus": float, "cpus": float},
    "slurm": {
        "partition": str,
        "account": str,
        "qos": str,
        "constraint": str,
        "minutes": int,
        "gpus": int,
        "cpus": int,
        "memory_gb": int,
        "cluster": str,
    },
}


def options(executor: str, given: list[str]) -> dict[str, Any]:
    """The options of an executor, each ``key=value``, in their types.

    Raises:
        UserError: For an executor or a key that does not exist, and a value of another type.
    """
    if executor not in OPTIONS:
        raise unknown("executor", executor, OPTIONS, "--executor")
    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"--executor-option {one}: should be KEY=VALUE, e.g. minutes=240")
        if key not in OPTIONS[executor]:
            raise unknown(f"option of the executor {executor}", key, OPTIONS[executor], f"--executor-option {one}")
        kind = OPTIONS[executor][key]
        try:
            found[key] = kind(value)
        except ValueError:
            raise UserError(f"--executor-option {one}: {key} should be a number (it is {value!r})") from None
    return found


class Started:
    """What runs on the other machine: a worker, its events written to a file.

    Args:
        line: The job.
        log: Where what the worker prints is added.
        events: Where its events are added.
        environment: Variables of the worker's environment beside those of the machine.
    """

    def __init__(self, line: str, log: str, events: str, environment: Mapping[str, str]) -> None:
        self.line, self.log, self.events, self.environment = line, log, events, dict(environment)
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Works to the end, and returns the worker's exit code."""
        with open(self.events, "ab") as events, open(self.log, "ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "kd_bench.launch.worker"],
                stdin=subprocess.PIPE,
                stdout=events,
                stderr=log,
                env=os.environ | self.environment,
            )
        with contextlib.suppress(ValueError):  # not the main thread of its process
            signal.signal(signal.SIGTERM, lambda *_: self.leave())
        assert self._worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._worker.stdin.write(self.line.encode())
            self._worker.stdin.flush()
        return self._worker.wait()

    def leave(self) -> None:
        """Lets the worker keep where it is."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(NOTICE)

    def checkpoint(self) -> None:
        """Called by submitit shortly before SLURM's time is up; what is to be done again is the runner's to say."""
        self.leave()


class Handle(Protocol):
    """A cluster's own handle of what it was given."""

    def code(self) -> int | None:
        """The exit code; None while it waits or runs; negative where the cluster ended it."""

    def cancel(self) -> None:
        """Ends it."""


class RemoteWorker:
    """A worker on another machine, as the runner sees it; of its events those from the byte ``begin`` on."""

    def __init__(self, handle: Handle, events: Path, log: Path, begin: int) -> None:
        self._handle, self._events, self._log, self._read = handle, events, log, begin

    def poll(self) -> tuple[list[dict[str, Any]], int | None]:
        """The events since the last call, and the exit code once it has ended."""
        code = self._handle.code()
        found = []
        with contextlib.suppress(FileNotFoundError), open(self._events, "rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found, code

    def leave(self) -> None:
        """Goes on: the cluster's work does not end with the runner."""

    def stop(self) -> None:
        """Ends it."""
        self._handle.cancel()

    def last_words(self) -> str:
        """The last line of its log."""
        return local_process.last_line(self._log)


def start(make: Any, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
    """Hands a job over.

    Args:
        make: Gives a ``Started`` to the cluster and returns its ``Handle``.
        job: What to do.
        log: Where what it prints is added; events go beside it.
    """
    log = log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    events = log.with_suffix(".events")
    remote = Path(job.folder).resolve()
    teacher = None if job.teacher is None else str(Path(job.teacher).resolve())
    weights = None if job.weights is None else str(Path(job.weights).resolve())
    data = None if job.data is None else str(Path(job.data).resolve())
    job = job.moved(str(remote), teacher, weights, data)
    begin = events.stat().st_size if events.exists() else 0  # what a former try told is no news
    handle = make(Started(job.line(), str(log), str(events), local_process.variables(job.threads)))
    return local_process.WorkerGroup([RemoteWorker(handle, events, log, begin)])
