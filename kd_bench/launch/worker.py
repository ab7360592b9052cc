"""The process that trains cohorts: ``python -m kd_bench.launch.worker``, with jobs on standard input, one at a time.

A worker ends when its standard input closes, so workers do not outlive a scheduler that is killed. It imports torch
only after it has acquired the leases of its trials. See ``worker_protocol`` for input, output and exit codes.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch.worker_protocol import BUSY, EventWriter, Fault, WorkerJob, stop_requested, training
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Heartbeat, Lease, LeaseMonitor, acquire_lease
from kd_bench.utils.errors import UserError
from kd_bench.utils.memory import is_out_of_memory
from kd_bench.utils.plugins import describe_error

LeasedTrial = tuple[Trial | PretrainedTeacher, TrialFolder, Lease]


def main() -> int:
    """Trains the cohorts of the jobs on standard input and returns the exit code of the last."""
    events = EventWriter(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what libraries print belongs in the log, not among the events
    signal.signal(signal.SIGTERM, _request_stop)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    while True:
        job = WorkerJob(**json.loads(jobs.get()))
        if job.log is not None:
            _append_output_to(job.log)
        code, finished = _run_job(job, events)
        if job.last or not finished or stop_requested.is_set():
            return code
        events.send("idle", code=code)


def _request_stop(*_: Any) -> None:
    stop_requested.set()
    if not training.is_set():
        raise SystemExit(0)


def _read_jobs(jobs: queue.SimpleQueue[bytes]) -> None:
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            jobs.put(line)
    # The scheduler's end of the pipe closes when it needs no more workers, and when it ends, for whatever reason.
    os._exit(1)


def _append_output_to(log: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


def _run_job(job: WorkerJob, events: EventWriter) -> tuple[int, bool]:
    """Trains a cohort. Returns the exit code, and whether nothing failed and no trial was left unfinished."""
    if job.rank:
        from kd_bench.launch.train_cohort import train_on_other_rank

        return _run_guarded(lambda: train_on_other_rank(job), events), False
    leased: list[LeasedTrial] | None = None

    def acquire() -> None:
        nonlocal leased
        leased = _acquire_leases(job)

    if code := _run_guarded(acquire, events):
        return code, False
    if leased is None:
        return BUSY, True
    heartbeat = Heartbeat([lease for _, _, lease in leased])
    try:
        code = _run_guarded(lambda: _run(job, leased, events), events)
    finally:
        heartbeat.stop()
        for _, _, lease in leased:
            lease.release(finished=False)
    return code, code == 0 and all(folder.status() != "missing" for _, folder, _ in leased)


def _acquire_leases(job: WorkerJob) -> list[LeasedTrial] | None:
    """Creates the trials' folders and acquires the leases of the unfinished trials.

    All workers acquire leases in the same order. If several workers start on the same cohort, the one that gets the
    first trial gets all of them, so the cohort stays in one process.

    Returns:
        None if another process holds the first unfinished trial.
    """
    kind = Trial if job.weights is None else PretrainedTeacher
    trials = {trial.id: trial for trial in (kind.model_validate_json(json.dumps(settings)) for settings in job.trials)}
    for trial in trials.values():
        TrialFolder(Path(job.folder) / trial.id).create(trial)
    monitor = LeaseMonitor()
    leased: list[LeasedTrial] = []
    for trial_id, trial in sorted(trials.items()):
        folder = TrialFolder(Path(job.folder) / trial_id)
        if folder.status() != "missing":
            continue
        lease = acquire_lease(folder.path, monitor)
        if lease is None:
            if not leased:
                return None
        elif folder.status() != "missing":
            lease.release(finished=True)
        else:
            leased.append((trial, folder, lease))
    return leased


def _run(job: WorkerJob, leased: list[LeasedTrial], events: EventWriter) -> None:
    """Imports the pretrained teacher, or trains the cohort; does nothing without leases."""
    for _, folder, _ in leased:
        folder.remove_failure()
    epochs = min((folder.epochs_done() for _, folder, _ in leased), default=0)
    events.send("claimed", trials=[folder.id for _, folder, _ in leased], epochs=epochs)
    if not leased:
        return
    from kd_bench.launch.job_isolation import isolated

    trial, folder, lease = leased[0]
    if isinstance(trial, PretrainedTeacher) and job.weights is not None:
        from kd_bench.trials.import_teacher import import_teacher

        data = Path(job.data) if job.data else None
        with isolated(job):
            machine = (data, job.device, job.threads, job.workers)
            import_teacher(trial, Path(job.weights), *machine, folder, lease, events.send)
    else:
        from kd_bench.launch.train_cohort import train

        trials = [(trial, *rest) for trial, *rest in leased if isinstance(trial, Trial)]
        with isolated(job):
            train(job, trials, events)  # type: ignore[arg-type]


def _run_guarded(work: Callable[[], None], events: EventWriter) -> int:
    """Calls ``work``, reports errors as events, and returns the exit code."""
    try:
        work()
    except UserError as error:
        events.send("error", reason=str(error), fault="settings")
        return 1
    except Exception as error:
        traceback.print_exc()
        fault, reason = _classify(error)
        events.send("error", reason=reason, fault=fault)
        return 1
    return 0


def _classify(error: Exception) -> tuple[Fault, str]:
    """Returns the kind of an error, and a sentence for the user."""
    first = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        context = f"{error.filename}: " if error.filename else ""
        return "disk", f"{context}{os.strerror(error.errno)}; free some space and run the same command again"
    if is_out_of_memory(error):
        return "memory", f"out of memory: {first}"
    return "crash", describe_error(error)


if __name__ == "__main__":
    sys.exit(main())
