"""What the scheduler and a worker exchange: jobs, events, exit codes, and the request to stop.

The scheduler writes a job to the worker's standard input as a line of JSON. The worker writes its events to its
standard output, one line of JSON each: the key ``event`` and the fields below. It ends with its job. If the job says
that others may follow, and the worker has finished all trials of which it had the leases, it sends ``idle`` instead and
waits for the next job.

============ ================================================ =======================================================
event        fields                                           meaning
============ ================================================ =======================================================
claimed      trials, epochs                                   the worker holds the leases of these trials, whose
                                                              checkpoints have at least this number of epochs
resumed      epoch (from 0), step, steps                      where training goes on within an epoch
progress     epoch (from 0), step, steps, rate (images/s)     position in the current epoch
prepared     trial, epoch (from 1)                            a trial has finished an epoch of its preparation
epoch        trial, epoch (from 1), top1 (percent)            a trial has finished an epoch
finished     trial, status, reason, top1                      a trial has a result; ``status`` is done or failed
crashed      trial, reason                                    a trial cannot be trained, the others continue
left         trials                                           the worker stopped on request and saved checkpoints
note         text                                             a sentence for the user
error        reason, fault                                    the worker failed and ends
idle         code                                             the job has ended, with what is otherwise the exit code
============ ================================================ =======================================================
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

Event = dict[str, Any]

#: Why a cohort failed: its settings or data, which fail again in another attempt; memory; the disk; or anything else.
Fault = Literal["settings", "memory", "disk", "crash"]

#: Settings that are the hash of a plug-in's file: of a method or data set, a network, an augmentation.
_PLUGIN_HASHES = {"source", "model_source", "own_source"}

#: Exit code of a worker whose trials are leased by another process.
BUSY = 75

#: Seconds that a worker has to save checkpoints after it was asked to stop. Clusters usually grant 30 in all.
STOP_SECONDS = 25.0

#: Set when the worker receives SIGTERM. The worker then saves checkpoints after the current step and ends.
stop_requested = threading.Event()

#: Set while the worker trains. Before and after, there is no state to save, so SIGTERM ends it at once.
training = threading.Event()


@dataclass(frozen=True)
class WorkerJob:
    """What a worker has to do.

    Attributes:
        folder: ``OUT/<recipe>``.
        trials: Settings of the trials, or of one pretrained teacher.
        weights: File of the pretrained teacher's weights; None for trials to train.
        pretrained: Files of the weights that the training of trials starts from, by trial.
        teacher: Folder of the finished trial whose network is the teacher; None without a teacher.
        data, threads, loggers, workers: As in ``RunOptions``.
        device: ``cpu``, or ``cuda:<n>``.
        rank: This process's rank among those that train the cohort; rank 0 writes the results.
        world_size: Number of processes that train the cohort.
        memory_fraction: Share of the GPU's memory that this worker may use; None for all of it.
        checkpoint_seconds: Seconds of training between two checkpoints within an epoch.
        eager: As in ``RunOptions``.
        log: File that the worker appends its standard error to; None for where it goes already.
        last: Whether the worker ends with this job.
        fresh: Whether it needs a worker that has had no other job, because an earlier attempt has failed.
    """

    folder: str
    trials: list[dict[str, Any]]
    weights: str | None
    teacher: str | None
    data: str | None
    device: str
    threads: int
    pretrained: Mapping[str, str] = field(default_factory=dict)
    loggers: Sequence[str] = ()
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    memory_fraction: float | None = None
    checkpoint_seconds: float = 600.0
    eager: bool = False
    log: str | None = None
    last: bool = True
    fresh: bool = False

    @property
    def runs_plugins(self) -> bool:
        """Whether it runs code of a plug-in, which may leave anything behind in the process."""
        return any(map(_names_plugin, self.trials))

    def to_line(self) -> str:
        """Returns the job as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def _names_plugin(settings: Any) -> bool:
    """Whether settings contain the hash of a plug-in's file, at any depth."""
    if isinstance(settings, dict):
        return any(
            _names_plugin(value) or (key in _PLUGIN_HASHES and value is not None) for key, value in settings.items()
        )
    return isinstance(settings, list) and any(map(_names_plugin, settings))


class EventWriter:
    """Writes a worker's events. Threads may share it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: str, **fields: Any) -> None:
        """Writes an event."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()
