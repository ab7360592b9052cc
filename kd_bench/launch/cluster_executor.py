"""What the executors for Ray and SLURM share: workers on other machines.

The cluster chooses the machine and starts the worker there. The worker's events come in a file beside its log, in the
results folder, which all machines must share. Leases and retries work as on one machine.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_bench.launch.devices import Devices
from kd_bench.launch.executor import Executor
from kd_bench.launch.local_process import start_worker, worker_environment
from kd_bench.launch.worker_group import LoggedWorker, WorkerGroup
from kd_bench.launch.worker_protocol import STOP_SECONDS, Event, WorkerJob

#: Largest number of cohorts that are submitted at a time by default. The cluster queues them.
MAX_SUBMITTED = 1000

#: Seconds between two looks at the worker.
_POLL_SECONDS = 0.2


class RemoteJob:
    """Runs a worker on the other machine and writes its events to a file. The cluster pickles and calls this object.

    The worker has the working folder of the process that made this object, which plug-ins may be named relative to, if
    the other machine has that folder.

    Args:
        job: The worker's job, as a line of JSON.
        log, events: Files to which its standard error and its events are appended.
        environment: Additional environment variables.
    """

    def __init__(self, job: str, log: str, events: str, environment: dict[str, str]) -> None:
        self._job, self._log, self._events, self._environment = job, log, events, environment
        self._folder = Path.cwd()
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int | str:
        """Runs the worker to its end. Returns its exit code, or a sentence that says why it could not be started."""
        folder = self._folder if self._folder.is_dir() else None
        try:
            with open(self._events, "ab") as events:
                self._worker = start_worker(self._job, Path(self._log), events, self._environment, folder=folder)
        except OSError as error:
            file = error.filename or "the worker"
            return (
                f"machine {socket.gethostname()}: {file}: {error.strerror}; all machines must share the results folder"
            )
        with suppress(ValueError):  # not in the main thread of its process
            signal.signal(signal.SIGTERM, lambda *_: self.checkpoint())
        try:
            # Not by wait(), which would hold a lock for ever that checkpoint needs to see the worker's end.
            while (code := self._worker.poll()) is None:
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:  # Ray's way to ask a task to stop
            self.checkpoint()
            code = self._worker.poll()
        return -signal.SIGTERM if code is None else code

    def checkpoint(self) -> None:
        """Asks the worker to save checkpoints and to end. submitit calls this shortly before SLURM's time limit."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._worker.wait(STOP_SECONDS)


class _RemoteWorker(LoggedWorker):
    """A worker on another machine. Of its events file, ``offset`` bytes are from earlier attempts."""

    def __init__(self, executor: ClusterExecutor, job: Any, events: Path, log: Path, offset: int) -> None:
        self._executor, self._job, self._events, self.log, self._offset = executor, job, events, log, offset

    def poll(self) -> tuple[list[Event], int | None]:
        code = self._executor.exit_code(self._job)
        events: list[Event] = []
        if isinstance(code, str):
            events.append({"event": "error", "reason": code, "fault": "settings"})
            code = 1
        with suppress(FileNotFoundError), open(self._events, "rb") as file:
            file.seek(self._offset)
            lines, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(lines) + len(newline)
            for line in lines.splitlines():
                with suppress(ValueError):
                    events.append(json.loads(line))
        return events, code

    def request_stop(self) -> None:
        self._executor.request_stop(self._job)

    def kill(self) -> None:
        self._executor.cancel(self._job)

    def describe_exit(self, code: int) -> str:
        """Says of a negative code, which is no signal's, what it stands for."""
        return super().describe_exit(code) if code >= 0 else "the cluster ended its job, or its machine was lost"


class ClusterExecutor(Executor):
    """Submits each cohort to a cluster.

    Args:
        jobs: Largest number of cohorts at a time; None for no limit but the cluster's.
        gpus: GPUs of a cohort; 0 for the CPU.
    """

    def __init__(self, jobs: int | None, gpus: float) -> None:
        super().__init__([("cuda:0" if gpus else "cpu",)] * (jobs or MAX_SUBMITTED))
        # As on one machine, a cohort gets its share of the memory of a GPU that it shares.
        self._memory_fraction = gpus if 0 < gpus < 1 else None

    def submit(self, work: RemoteJob) -> Any:
        """Submits a job and returns the cluster's object for it; for subclasses."""
        raise NotImplementedError

    def exit_code(self, job: Any) -> int | str | None:
        """Returns what a job returned; None while it runs; negative if the cluster ended it; for subclasses."""
        raise NotImplementedError

    def request_stop(self, job: Any) -> None:
        """Asks a job to save checkpoints and to end, if the cluster offers a way to ask; for subclasses."""

    def cancel(self, job: Any) -> None:
        """Ends a job; for subclasses."""
        raise NotImplementedError

    def start_workers(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerGroup:
        """Submits a cohort. Its events are written beside the log."""
        log = log.resolve()
        log.parent.mkdir(parents=True, exist_ok=True)
        events = log.with_suffix(".events")
        paths = (job.folder, job.teacher, job.weights, job.data)
        folder, teacher, weights, data = (None if path is None else str(Path(path).resolve()) for path in paths)
        pretrained = {trial: str(Path(path).resolve()) for trial, path in job.pretrained.items()}
        job = replace(job, folder=str(folder), teacher=teacher, weights=weights, data=data, pretrained=pretrained)
        job = replace(job, memory_fraction=self._memory_fraction)
        offset = events.stat().st_size if events.exists() else 0
        work = RemoteJob(job.to_line(), str(log), str(events), worker_environment(job.threads))
        return WorkerGroup([_RemoteWorker(self, self.submit(work), events, log, offset)])
