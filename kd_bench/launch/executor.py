"""Executors start the workers of cohorts: the base class, and the one for this machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from kd_bench.launch.devices import Devices, local_slots, share_gpus
from kd_bench.launch.launcher import RankEnvironment
from kd_bench.launch.launcher_ranks import LauncherRankZero
from kd_bench.launch.local_process import WorkerProcess, free_port, start_rank
from kd_bench.launch.options import RunOptions
from kd_bench.launch.worker_group import WorkerGroup
from kd_bench.launch.worker_protocol import WorkerJob


class Executor:
    """Starts cohorts. Jobs, events and results do not depend on the executor.

    Args:
        slots: One tuple of devices for each cohort that can run at a time.

    Attributes:
        splits_cohorts: Whether a free slot is an idle device, so that it pays to split a cohort for it. On a cluster it
            is not: each part would occupy another device for a teacher's pass of its own.
        ends_workers: Whether the workers end with this command. Otherwise they go on, and another command finds them by
            their leases.
    """

    splits_cohorts = False
    ends_workers = True

    def __init__(self, slots: list[Devices]) -> None:
        self._free = slots
        self._used: dict[int, Devices] = {}

    @property
    def free_slots(self) -> int:
        """Number of other cohorts that can start."""
        return len(self._free)

    def start(self, job: WorkerJob, log: Path) -> WorkerGroup:
        """Starts a cohort's workers on free devices, and appends their standard error to the log."""
        devices = self._free.pop(0)
        group = self.start_workers(replace(job, device=devices[0]), devices, log)
        self._used[id(group)] = devices
        return group

    def release(self, group: WorkerGroup) -> None:
        """Frees the devices of a cohort that has ended."""
        self._free.append(self._used.pop(id(group)))

    def start_workers(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerGroup:
        """Starts a cohort's workers on these devices; for subclasses."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the executor, after all workers have ended."""


class LocalExecutor(Executor):
    """Runs cohorts on this machine's devices, or in the processes that a launcher has started.

    The worker of one device gets the next cohort of that device, because a new one needs seconds to import everything.
    After a failure there is a new worker.

    Raises:
        UserError: If there are too few devices.
    """

    def __init__(self, options: RunOptions, launcher: LauncherRankZero | None) -> None:
        super().__init__([(launcher.device,)] if launcher else local_slots(options))
        self._launcher = launcher
        self.splits_cohorts = not share_gpus(devices[0] for devices in self._free)
        # Cohorts that share a GPU get equal shares of its memory, so that one that needs more fails alone.
        cohorts = Counter(devices for devices in self._free if devices[0] != "cpu")
        self._memory_fraction = {devices: 1 / count for devices, count in cohorts.items() if count > 1}
        self._workers: dict[int, WorkerProcess] = {}
        self._idle: defaultdict[Devices, list[WorkerProcess]] = defaultdict(list)

    def start_workers(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerGroup:
        """Starts a worker on each device, or a single one that imports a pretrained teacher."""
        job = replace(job, memory_fraction=self._memory_fraction.get(devices))
        if self._launcher is None and len(devices) == 1:
            worker = self._single_worker(replace(job, last=job.runs_plugins), devices, log)
            group = WorkerGroup([worker])
            self._workers[id(group)] = worker
            return group
        if job.weights is not None:
            return WorkerGroup([WorkerProcess(job, log)])
        if self._launcher is not None:
            return self._launcher.start(job, log)
        count, port = len(devices), free_port()
        ranks = [RankEnvironment(rank, count, rank, count, "127.0.0.1", port) for rank in range(count)]
        return WorkerGroup([start_rank(job, device, log, rank) for rank, device in zip(ranks, devices, strict=True)])

    def _single_worker(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerProcess:
        """Gives the job to an idle worker of the device, or to a new one, in whose place an idle worker ends."""
        idle = self._idle[devices].pop() if self._idle[devices] else None
        if idle is not None and idle.is_idle and not job.fresh:
            idle.give(job, log)
            return idle
        if idle is not None:
            idle.close()
        return WorkerProcess(job, log)

    def release(self, group: WorkerGroup) -> None:
        """Frees the devices of a cohort that has ended, and keeps its worker if that can have another."""
        devices, worker = self._used[id(group)], self._workers.pop(id(group), None)
        super().release(group)
        if worker is not None and worker.is_idle:
            self._idle[devices].append(worker)

    def close(self) -> None:
        """Ends the idle workers."""
        for workers in self._idle.values():
            while workers:
                workers.pop().close()
