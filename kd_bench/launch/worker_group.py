"""The workers that train one cohort, as the scheduler sees them: one, or one per device."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from kd_bench.launch.worker_protocol import Event

#: Seconds that the other workers of a cohort have to end by themselves after one has failed.
GRACE_SECONDS = 5.0


class Worker(Protocol):
    """A process of a cohort, on this machine or on another."""

    def poll(self) -> tuple[list[Event], int | None]:
        """Returns the events since the last call, and the exit code if the worker has ended and all events are read."""

    def request_stop(self) -> None:
        """Asks the worker to save checkpoints and to end."""

    def kill(self) -> None:
        """Ends the worker. Its trials resume from their last checkpoint in the next run."""

    def last_log_line(self) -> str:
        """Returns the last line of its log that is not empty, at most 300 characters."""

    def describe_exit(self, code: int) -> str:
        """Returns a sentence that says how it ended, from its exit code."""
        if code == -signal.SIGKILL:
            return "the worker was killed by signal 9 (the system does this when memory is full)"
        if code < 0:
            return f"the worker was killed by signal {-code}"
        if code == 0:
            return "the worker ended without an error, but did not finish its trials"
        line = self.last_log_line()
        return f"the worker ended with code {code}{f': {line}' if line else ''}"


class WorkerGroup:
    """The workers of a cohort, of which rank 0 writes the results.

    If one of them ends with an error, the others cannot continue and are killed.

    Attributes:
        cause: A sentence that names the worker that was killed by a signal, if there is one.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._codes: dict[int, int] = {}
        self._kill_at: float | None = None
        self.cause: str | None = None

    def poll(self) -> tuple[list[Event], int | None]:
        """Returns the events since the last call, and the exit code if all workers have ended.

        The exit code is 0 if rank 0 ended with 0, because it writes the results. Else it is that of the first failure.
        """
        events: list[Event] = []
        for rank, worker in enumerate(self._workers):
            if rank in self._codes:
                continue
            new_events, code = worker.poll()
            events += new_events
            if code is not None:
                self._codes[rank] = code
                self._record_signal(rank, code)
        if len(self._codes) < len(self._workers):
            now = time.monotonic()
            rank_zero_has_ended = 0 in self._codes
            if self._kill_at is None and (rank_zero_has_ended or any(self._codes.values())):
                self._kill_at = now + GRACE_SECONDS
            if self._kill_at is not None and now > self._kill_at:
                self.kill()
            return events, None
        return events, 0 if self._codes[0] == 0 else next(code for code in self._codes.values() if code)

    def _record_signal(self, rank: int, code: int) -> None:
        # A worker that was killed is the cause of the errors that the others report.
        killed_here = self._kill_at is not None and time.monotonic() > self._kill_at
        if len(self._workers) > 1 and code < 0 and self.cause is None and not killed_here:
            self.cause = (
                f"process {rank + 1} of {len(self._workers)} was killed by signal {-code}, and the others cannot "
                "continue without it; the same command resumes from the last checkpoint"
            )

    def request_stop(self) -> None:
        """Asks the workers to save checkpoints and to end."""
        for worker in self._workers:
            worker.request_stop()

    def kill(self) -> None:
        """Ends the workers. Their trials resume from their last checkpoint in the next run."""
        for worker in self._workers:
            worker.kill()

    def describe_exit(self) -> str:
        """Returns a sentence that says how the first worker that failed has ended; after the end of all workers."""
        rank = next((rank for rank, code in self._codes.items() if code), 0)
        return self._workers[rank].describe_exit(self._codes[rank])


class LoggedWorker(Worker):
    """A worker whose log, the file ``log``, this machine can read."""

    log: Path

    def last_log_line(self) -> str:
        """Reads it from the log."""
        with suppress(OSError):
            if lines := self.log.read_text(errors="replace").rstrip().splitlines():
                return lines[-1].strip()[:300]
        return ""
