"""The process that trains one cohort: ``python -m kd_bench.launch.worker``, its input the job as a line of JSON.

It tells the runner how far it is by lines of JSON on its output, and ends when its input closes: when the runner is
killed, so are its workers. Nothing heavy is imported before it holds the trials' leases.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Heartbeat, Lease, Watch, claim
from kd_bench.utils.errors import UserError

#: Why a cohort failed: its settings or data, which another try finds the same; memory; the disk; or anything else.
Fault = Literal["settings", "memory", "disk", "crash"]

#: Set when the worker is asked to leave.
leaving = threading.Event()

#: Exit code of a worker that found its trials in other hands.
BUSY = 75


@dataclass(frozen=True)
class WorkerJob:
    """What a worker is to do.

    Attributes:
        folder: ``OUT/<recipe>``.
        trials: Settings of the trials; or those of one given teacher.
        weights: The file of the given teacher; None where there is something to train.
        teacher: Folder of the finished trial whose network teaches; None where nothing does.
        data: Where data sets are; None for the default.
        device: ``cpu``, or ``cuda:<n>``.
        threads: Threads of one operation on the CPU.
        loggers: Where metrics are shown beside the folder, by name.
        workers: Processes that decode images, where these are not held in memory.
        rank: The worker's number among those that train the cohort together; the first writes the results.
        processes: How many these are.
        memory_fraction: Share of the GPU's memory that it may use, where it shares the GPU; None for all.
        checkpoint_seconds: Seconds of training after which the cohort is kept within an epoch.
    """

    folder: str
    trials: list[dict[str, Any]]
    weights: str | None
    teacher: str | None
    data: str | None
    device: str
    threads: int
    loggers: Sequence[str] = ()
    workers: int = 0
    rank: int = 0
    processes: int = 1
    memory_fraction: float | None = None
    checkpoint_seconds: float = 600.0

    def on(self, device: str, memory_fraction: float | None = None) -> WorkerJob:
        """The same on a device."""
        return replace(self, device=device, memory_fraction=memory_fraction)

    def moved(self, folder: str, teacher: str | None, weights: str | None, data: str | None) -> WorkerJob:
        """The same with other paths."""
        return replace(self, folder=folder, teacher=teacher, weights=weights, data=data)

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def listen() -> None:
    """Takes SIGTERM as notice to leave."""
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())


class EventWriter:
    """The worker's events, a line of JSON each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def tell(self, event: str, **about: Any) -> None:
        """Sends an event."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **about}) + "\n")
            self._stream.flush()


def claim_all(folders: list[TrialFolder]) -> list[tuple[TrialFolder, Lease]] | None:
    """Leases of the trials that are still to be done; None where another process is ahead of us.

    Everybody claims in the same order, so of several processes that want the same cohort the one that gets the first
    trial gets them all, and the cohort is not torn apart.
    """
    watch = Watch()
    held: list[tuple[TrialFolder, Lease]] = []
    for folder in sorted(folders, key=lambda folder: folder.id):
        if folder.status() != "missing":
            continue
        lease = claim(folder.path, watch)
        if lease is None:
            if not held:
                return None
        elif folder.status() != "missing":
            lease.release(finished=True)
        else:
            held.append((folder, lease))
    return held


def main() -> int:
    """Trains the cohort that the input names."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs into the log, not among the events
    voice = EventWriter(events)
    listen()
    job = WorkerJob(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_die_with_the_runner, daemon=True).start()
    if job.rank:
        from kd_bench.launch.train_cohort import assist

        return _guarded(voice, lambda: assist(job))
    kind = Trial if job.weights is None else PretrainedTeacher
    trials = {trial.id: trial for trial in (kind.model_validate_json(json.dumps(one)) for one in job.trials)}
    folders = [TrialFolder(Path(job.folder) / trial) for trial in trials]
    for folder in folders:
        folder.begin(trials[folder.id])
    held = claim_all(folders)
    if held is None:
        return BUSY
    heartbeat = Heartbeat([lease for _, lease in held])
    for folder, _ in held:
        folder.forget_failure()
    voice.tell("claimed", trials=[folder.id for folder, _ in held])
    try:
        work = [(trials[folder.id], folder, lease) for folder, lease in held]
        return _guarded(voice, lambda: _work(job, work, voice)) if held else 0
    finally:
        heartbeat.stop()
        for _, lease in held:
            lease.release(finished=False)


def _guarded(voice: EventWriter, work: Callable[[], None]) -> int:
    """Does the work and reports errors; the exit code."""
    try:
        work()
    except UserError as error:
        voice.tell("error", reason=str(error), fault="settings")
        return 1
    except Exception as error:
        traceback.print_exc()
        fault, reason = _fault(error)
        voice.tell("error", reason=reason, fault=fault)
        return 1
    return 0


def _fault(error: Exception) -> tuple[Fault, str]:
    """What kind of error it is, and in a sentence."""
    first = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"{error.filename}: " if error.filename else ""
        return "disk", f"{place}{os.strerror(error.errno)}; free some space and run the same command again"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in first:
        return "memory", f"out of memory: {first}"
    return "crash", f"{type(error).__name__}: {first}"


def _die_with_the_runner() -> None:
    # The runner never writes more than the job; its end of the pipe closes when it ends, however it ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _work(job: WorkerJob, held: list[tuple[Trial | PretrainedTeacher, TrialFolder, Lease]], voice: EventWriter) -> None:
    given, folder, lease = held[0]
    if isinstance(given, PretrainedTeacher) and job.weights is not None:
        from kd_bench.trials.import_teacher import import_teacher

        data = Path(job.data) if job.data else None
        import_teacher(given, Path(job.weights), data, job.device, job.threads, folder, lease, voice.tell)
    else:
        from kd_bench.launch.train_cohort import train

        train(job, [(trial, *rest) for trial, *rest in held if isinstance(trial, Trial)], voice)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
