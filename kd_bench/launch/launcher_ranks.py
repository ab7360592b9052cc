"""Workers in the processes that torchrun or SLURM has started, one per device and possibly on several machines.

Rank 0 runs the scheduler. It writes jobs to a key-value store. The other ranks start and end workers for these jobs and
write how the workers ended.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.launch.devices import find_devices
from kd_bench.launch.launcher import RankEnvironment
from kd_bench.launch.local_process import free_port, start_rank
from kd_bench.launch.worker_group import Worker, WorkerGroup
from kd_bench.launch.worker_protocol import STOP_SECONDS, Event, WorkerJob
from kd_bench.utils.errors import RunFailed, Terminated, UserError
from kd_bench.utils.signals import collecting_signals

if TYPE_CHECKING:
    from torch.distributed import Store

#: Seconds between two looks into the store.
_POLL_SECONDS = 0.2

#: Seconds after which another rank, which was told to end its worker, counts as lost.
_LOST_SECONDS = 30.0

#: Seconds that the processes wait for one another at the start.
_JOIN_SECONDS = 600.0


class LauncherRankZero:
    """Rank 0 of the processes that a launcher has started, which makes the other ranks run workers.

    Raises:
        RunFailed: If the other ranks do not start in time. Rank 0 waits for them, because the store ends with it.
    """

    def __init__(self, environment: RankEnvironment, device: str) -> None:
        self.environment, self.device = environment, device
        self._store = _open_store(environment)
        _wait_for_ranks(self._store, environment.world_size)
        self._jobs = 0
        self._closed = False
        atexit.register(self.close)

    def start(self, job: WorkerJob, log: Path) -> WorkerGroup:
        """Starts a worker in this process and, through the store, one in each other rank."""
        number, self._jobs = self._jobs, self._jobs + 1
        port = free_port()
        self._store.set(f"job/{number}", json.dumps({"job": asdict(job), "log": str(log), "port": port}))
        worker = start_rank(job, self.device, log, _for_workers(self.environment, port))
        others = [_StoreWorker(self._store, number, rank) for rank in range(1, self.environment.world_size)]
        return WorkerGroup([worker, *others])

    def close(self) -> None:
        """Ends the other ranks."""
        if not self._closed:
            self._closed = True
            self._store.set(f"job/{self._jobs}", json.dumps({}))


class _StoreWorker(Worker):
    """A worker that another rank has started; rank 0 observes it through the store."""

    def __init__(self, store: Store, number: int, rank: int) -> None:
        self._store, self._number, self._rank = store, number, rank
        self._last_log_line = ""
        self._killed_at: float | None = None

    def poll(self) -> tuple[list[Event], int | None]:
        key = f"end/{self._number}/{self._rank}"
        if not self._store.check([key]):
            if self._killed_at is not None and time.monotonic() - self._killed_at > _LOST_SECONDS:
                raise RunFailed(
                    f"process {self._rank} has died or does not answer (processes count from 0), and the others cannot "
                    "continue without it; start all of them again to resume from the last checkpoint"
                )
            return [], None
        end = json.loads(self._store.get(key))
        self._last_log_line = end["last_log_line"]
        return end["events"], int(end["code"])

    def request_stop(self) -> None:
        """Does nothing, because rank 0 of a cohort makes all its ranks stop after the same step."""

    def kill(self) -> None:
        self._store.set(f"kill/{self._number}", "")
        if self._killed_at is None:
            self._killed_at = time.monotonic()

    def last_log_line(self) -> str:
        return self._last_log_line


@lru_cache(maxsize=1)
def join_launcher(launcher: RankEnvironment | None, device: str) -> LauncherRankZero | None:
    """Returns the ``LauncherRankZero`` in rank 0, one per command. In the other ranks runs workers and then exits.

    Args:
        launcher: The launcher's environment; None without a launcher, for which this function returns None.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: If the launcher has started more processes than there are devices.
        RunFailed: If rank 0 dies.
        KeyboardInterrupt, Terminated: In the other ranks, after their worker has saved its part of the checkpoints.
    """
    if launcher is None:
        return None
    devices = find_devices(device)
    if devices != ["cpu"] and len(devices) < launcher.local_world_size:
        raise UserError(f"the launcher has started {launcher.local_world_size} processes for {len(devices)} devices")
    device = "cpu" if devices == ["cpu"] else devices[launcher.local_rank]
    if launcher.rank == 0:
        return LauncherRankZero(launcher, device)
    _run_workers(launcher, device)
    sys.exit(0)


def _run_workers(launcher: RankEnvironment, device: str) -> None:
    """Runs a worker for each job that rank 0 writes to the store, until rank 0 closes it."""
    from torch.distributed import DistError

    try:
        store = _open_store(launcher)
        store.set(f"joined/{launcher.rank}", "")
        with collecting_signals() as received:
            _run_orders(launcher, device, store, received)
    except (DistError, RuntimeError) as error:
        reason = (str(error).splitlines() or [str(error)])[0]
        raise RunFailed(f"process {launcher.rank}: lost the first process ({reason})") from error


def _run_orders(launcher: RankEnvironment, device: str, store: Store, received: Sequence[int]) -> None:
    """Runs workers as ``_run_workers`` does. ``received`` are the signals that this process has received so far."""
    number = 0
    while order := _wait_for_json(store, f"job/{number}", received):
        environment = _for_workers(launcher, order["port"])
        worker = start_rank(WorkerJob(**order["job"]), device, Path(order["log"]), environment)
        reported: list[Event] = []
        kill_at = math.inf
        code: int | None = None
        try:
            while code is None and time.monotonic() < kill_at and not store.check([f"kill/{number}"]):
                time.sleep(_POLL_SECONDS)
                events, code = worker.poll()
                reported += [event for event in events if event["event"] in ("error", "note")]
                if received and kill_at == math.inf:
                    # Launchers send signals to all ranks, and all workers have to take part in saving their state.
                    kill_at = time.monotonic() + STOP_SECONDS
                    worker.request_stop()
        finally:
            worker.kill()
        end = {"code": -9 if code is None else code, "last_log_line": worker.last_log_line(), "events": reported}
        store.set(f"end/{number}/{launcher.rank}", json.dumps(end))
        number += 1


def _wait_for_ranks(store: Store, world_size: int) -> None:
    deadline = time.monotonic() + _JOIN_SECONDS
    while missing := [rank for rank in range(1, world_size) if not store.check([f"joined/{rank}"])]:
        if time.monotonic() > deadline:
            ranks = ", ".join(map(str, missing))
            raise RunFailed(
                f"of {world_size} processes (from 0 to {world_size - 1}), these have not started in "
                f"{_JOIN_SECONDS / 60:.0f} minutes: {ranks}; see their output"
            )
        time.sleep(_POLL_SECONDS)


def _for_workers(launcher: RankEnvironment, port: int) -> RankEnvironment:
    """Returns the environment of this rank's worker. Workers have a store of their own, hosted by their rank 0."""
    return replace(launcher, master_port=port, agent_store=False)


def _wait_for_json(store: Store, key: str, received: Sequence[int]) -> dict[str, Any]:
    while not store.check([key]):
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else Terminated(received[0])
        time.sleep(_POLL_SECONDS)
    value: dict[str, Any] = json.loads(store.get(key))
    return value


def _open_store(launcher: RankEnvironment) -> Store:
    from torch.distributed import PrefixStore, TCPStore

    address, hosts_store = (launcher.master_addr, launcher.master_port), launcher.rank == 0 and not launcher.agent_store
    store = TCPStore(*address, is_master=hosts_store, wait_for_workers=False, timeout=timedelta(seconds=_JOIN_SECONDS))
    return PrefixStore(f"kd_bench/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
