"""Cohorts as subprocesses of this machine."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_bench.errors import UserError
from kd_bench.runner.worker import Job

#: glibc hands every large tensor back to the system when it is freed, and gets it anew, page by page, in the next step:
#: a quarter of a small network's training time on a CPU. Keeping the memory changes no result.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


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
class Process:
    """A worker under way."""

    job: Job
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

    def stop(self) -> None:
        """Ends it; its trials go on from their last epoch when they are run again."""
        self.popen.kill()
        self.popen.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return lines[-1][:300] if lines else ""


def start(job: Job, log: Path) -> Process:
    """Starts a worker.

    Args:
        job: What to do.
        log: Where what it prints is added.
    """
    threads = str(job.threads)
    environment = _ALLOCATOR | os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    environment["KD_BENCH_COMMAND"] = " ".join(["kd-bench", *sys.argv[1:]])
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", "kd_bench.runner.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is the runner's to handle
        )
    process = Process(job, popen, log)
    process.reader = threading.Thread(target=_read, args=(process,), daemon=True)
    process.reader.start()
    assert popen.stdin is not None
    try:
        popen.stdin.write(job.line().encode())
        popen.stdin.flush()
    except BrokenPipeError:
        pass  # it ended at once; its exit code and its log tell why
    return process


def _read(process: Process) -> None:
    for event in _events(process.popen):
        process.events.put(event)


def _events(popen: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert popen.stdout is not None
    for line in popen.stdout:
        try:
            yield json.loads(line)
        except ValueError:
            continue
