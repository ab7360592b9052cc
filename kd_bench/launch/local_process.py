"""Cohorts as subprocesses of this machine."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import UserError

#: glibc hands every large tensor back to the system when it is freed, and gets it anew, page by page, in the next step:
#: a quarter of a small network's training time on a CPU. Keeping the memory changes no result.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


#: Seconds that the other processes of a cohort have to end by themselves once one has failed.
PATIENCE = 5.0


def devices(wanted: str) -> list[str]:
    """The devices to spread cohorts over.

    Args:
        wanted: ``cpu``; ``cuda`` for all GPUs; ``cuda:1``; or ``auto`` for GPUs where there are any.

    Raises:
        UserError: For a device that does not exist.
    """
    if wanted == "cpu" or (wanted == "auto" and not _may_have_gpu()):
        return ["cpu"]
    import torch

    present = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if wanted == "auto":
        return present or ["cpu"]
    found = present if wanted == "cuda" else [name for name in present if name == wanted]
    if not found:
        raise UserError(f"--device {wanted}: there is no such device; there are: {', '.join([*present, 'cpu'])}")
    return found


def _may_have_gpu() -> bool:
    """False where it is plain that there is none, which spares the seconds that importing torch takes."""
    drivers = ("nvidiactl", "nvidia0", "kfd", "dxg")
    return sys.platform != "linux" or any(Path("/dev", name).exists() for name in drivers)


@dataclass
class WorkerProcess:
    """A worker under way."""

    job: WorkerJob
    popen: subprocess.Popen[bytes]
    log: Path
    events: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    reader: threading.Thread | None = None

    def poll(self) -> tuple[list[dict[str, Any]], int | None]:
        """The events since the last call, and the exit code once it has ended and all was read."""
        code = self.popen.poll()
        if code is not None and self.reader:
            self.reader.join(timeout=5)
        found = []
        while not self.events.empty():
            found.append(self.events.get())
        return found, code

    def leave(self) -> None:
        """Asks it to keep where it is, and to end."""
        self.popen.terminate()

    def stop(self) -> None:
        """Ends it; its trials go on from their last epoch when they are run again."""
        self.popen.kill()
        self.popen.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        return last_line(self.log)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def variables(threads: int) -> dict[str, str]:
    """What a worker's environment has beside that of its machine."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    kept = {name: value for name, value in _ALLOCATOR.items() if name not in os.environ}
    return kept | limits | {"KD_BENCH_COMMAND": " ".join(["kd-bench", *sys.argv[1:]])}


class Worker(Protocol):
    """A process of a cohort, here or elsewhere; see ``Process``."""

    def poll(self) -> tuple[list[dict[str, Any]], int | None]:
        """The events since the last call, and the exit code once it has ended and all was read."""

    def stop(self) -> None:
        """Ends it."""

    def leave(self) -> None:
        """Asks it to keep where it is and to end."""

    def last_words(self) -> str:
        """The last line of its log."""


class WorkerGroup:
    """The processes that train a cohort together, the first of which writes its results. One of them may be all.

    Where one ends with an error the others cannot go on, and are ended.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._codes: dict[int, int] = {}
        self._began_to_end: float | None = None
        self.cause: str | None = None

    def poll(self) -> tuple[list[dict[str, Any]], int | None]:
        """The events since the last call, and, once all have ended, the exit code.

        It is 0 where the first ended well, which writes the results; else that of the first that failed.
        """
        events: list[dict[str, Any]] = []
        for rank, worker in enumerate(self._workers):
            if rank in self._codes:
                continue
            heard, code = worker.poll()
            events += heard
            if code is not None:
                self._codes[rank] = code
                self._note(rank, code)
        now = time.monotonic()
        if len(self._codes) < len(self._workers):
            failed = any(self._codes.values()) or 0 in self._codes
            if failed and self._began_to_end is None:
                self._began_to_end = now
            if self._began_to_end is not None and now - self._began_to_end > PATIENCE:
                self.stop()
            return events, None
        return events, self._codes[0] and next(code for code in self._codes.values() if code)

    def _note(self, rank: int, code: int) -> None:
        # A signal is the cause of what the others complain of, and so goes before what they say.
        if len(self._workers) > 1 and code < 0 and self.cause is None and not self._stopped:
            self.cause = (
                f"process {rank + 1} of {len(self._workers)} was killed by signal {-code}, and the others cannot go on "
                "without it; the same command goes on from the last epoch"
            )

    @property
    def _stopped(self) -> bool:
        return self._began_to_end is not None and time.monotonic() - self._began_to_end > PATIENCE

    def leave(self) -> None:
        """Asks them to keep where they are, and to end."""
        for worker in self._workers:
            worker.leave()

    def stop(self) -> None:
        """Ends them; their trials go on from their last epoch when they are run again."""
        for worker in self._workers:
            worker.stop()

    def last_words(self) -> str:
        """The last line of the log of the first that failed."""
        failed = [rank for rank, code in self._codes.items() if code] or [0]
        return self._workers[failed[0]].last_words()


def start(job: WorkerJob, log: Path, more: Mapping[str, str] | None = None) -> WorkerProcess:
    """Starts a worker.

    Args:
        job: What to do.
        log: Where what it prints is added.
        more: Variables of its environment.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", "kd_bench.launch.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | variables(job.threads) | dict(more or {}),
            start_new_session=True,  # Ctrl-C is the runner's to handle
        )
    process = WorkerProcess(job, popen, log)
    process.reader = threading.Thread(target=_read, args=(process,), daemon=True)
    process.reader.start()
    assert popen.stdin is not None
    try:
        popen.stdin.write(job.line().encode())
        popen.stdin.flush()
    except BrokenPipeError:
        pass  # it ended at once; its exit code and its log tell why
    return process


def _read(process: WorkerProcess) -> None:
    for event in _events(process.popen):
        process.events.put(event)


def _events(popen: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert popen.stdout is not None
    for line in popen.stdout:
        try:
            yield json.loads(line)
        except ValueError:
            continue
