"""Cohorts whose batches several processes share, and the launchers that start one process a device on many machines.

On one machine the runner starts the processes of a cohort itself. Where torchrun or SLURM has started the command once
a device, the first of these is the runner, and the others start and end workers as it says: they meet in a key-value
store, in which the runner writes jobs and the others how those ended. Either way workers find the environment that
torchrun gives, which is what Lightning looks for.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.launch import local_process
from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import RunFailed, UserError

if TYPE_CHECKING:
    from torch.distributed import Store

#: Seconds between two looks at what others wrote.
_LOOK = 0.2


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher has started, one a device.

    Attributes:
        rank: Its number among all of them, from 0.
        size: How many there are.
        local_rank: Its number on its machine.
        local_size: How many there are on each machine.
        address: Machine of the first of them.
        port: Where their store is, on that machine.
        hosted: Whether the launcher keeps the store.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    hosted: bool

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What a launcher says of this process; None where it was started by itself, or is the only one."""
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        rank, size, local_rank, local_size, port = (int(environment[name]) for name in names)
        hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        found = Launched(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, hosted)
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        # The step's variables, not the job's: in a batch script, where one process runs, the latter tell of many.
        size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        if size % nodes:
            raise UserError(f"srun: {size} tasks on {nodes} nodes; there must be equally many on each")
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        found = Launched(rank, size, local_rank, size // nodes, *_meeting(environment), hosted=False)
    else:
        return None
    return found if found.size > 1 else None


def _meeting(environment: Mapping[str, str]) -> tuple[str, int]:
    """The first machine of a SLURM step, and a port that follows from its job, as Lightning chooses them."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    address = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    port = environment.get("MASTER_PORT") or 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])
    return address, int(port)


def processes(devices: int | None, nodes: int | None, here: Launched | None) -> int:
    """How many processes share a cohort's batches.

    Args:
        devices: Of each machine, as the user has it.
        nodes: Machines, as the user has them.
        here: What the launcher says.

    Raises:
        UserError: Where the two do not agree, and where several machines are wanted without a launcher.
    """
    if here is None:
        if nodes is not None and nodes > 1:
            raise UserError(
                f"--nodes {nodes}: start the command once a device on each of the machines, with torchrun "
                f"--nnodes {nodes} --nproc-per-node {devices or 'DEVICES'} ... -m kd_bench.cli.main run, or with srun"
            )
        return devices or 1
    for option, wanted, there in (("--devices", devices, here.local_size), ("--nodes", nodes, here.nodes)):
        if wanted not in (None, there):
            raise UserError(f"{option} {wanted}: the launcher has started processes for {there}")
    return here.size


def check(planned: Iterable[PlannedTrial], count: int) -> None:
    """Makes sure that so many processes can share the batches of these trials, and of the teachers that they need.

    What batch norms and losses see at once is the trial's to say, so that its result does not depend on how many
    processes there are: each takes whole micro-batches.

    Raises:
        UserError: Where they cannot.
    """
    wanted = (trial for one in planned for trial in (one.trial, one.trial.teacher))
    for trial in {trial.id: trial for trial in wanted if isinstance(trial, Trial)}.values():
        at_once = trial.micro_batch or trial.batch_size
        pieces = trial.batch_size // at_once
        if trial.sync_batch_norm and pieces != count:
            raise UserError(
                f"sync_batch_norm: a batch of {trial.batch_size} images in micro-batches of {at_once} needs "
                f"{pieces} processes, one each (there would be {count}): --devices, --nodes, or another micro_batch"
            )
        if count == 1:
            continue
        if trial.pipeline is None:
            raise UserError(
                f"--devices: {trial.dataset.name} lies in memory, and each of its cohorts trains on one device; "
                "leave --devices out, and cohorts are spread over all devices"
            )
        if pieces % count:
            fitting = trial.batch_size // count
            advice = f"; --set micro_batch={fitting} makes trials of it that they can" * (trial.batch_size % count == 0)
            raise UserError(
                f"--devices: batch norms and losses of {trial.model} see {at_once} images at once, so {count} "
                f"processes cannot share its batch of {trial.batch_size}, which is in {pieces} pieces{advice}"
            )


def start(job: WorkerJob, devices: tuple[str, ...], log: Path, launch: Launch | None) -> local_process.WorkerGroup:
    """Starts a cohort's workers.

    Args:
        job: What to do, on the first device.
        devices: Of this machine, one a process.
        log: Where what they print is added; those after the first have logs of their own beside it.
        launch: The processes that a launcher has started, this one the first; None where this machine's are all.
    """
    if launch is not None and job.weights is None:
        return launch.start(job, log)
    if len(devices) == 1 or job.weights is not None:
        return local_process.WorkerGroup([local_process.start(job, log)])
    port = free_port()
    return local_process.WorkerGroup(
        [
            local_process.start(
                *_worker(job, log, rank, device, len(devices), (rank, len(devices)), ("127.0.0.1", port))
            )
            for rank, device in enumerate(devices)
        ]
    )


def _worker(
    job: WorkerJob, log: Path, rank: int, device: str, size: int, place: tuple[int, int], meeting: tuple[str, int]
) -> tuple[WorkerJob, Path, dict[str, str]]:
    """A worker's job, log and environment.

    Args:
        job: The cohort's.
        log: The first worker's.
        rank: Number of the worker.
        device: What it works on.
        size: How many there are.
        place: Its number on its machine, and how many there are.
        meeting: Address and port at which they meet.
    """
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(place[0]),
        "LOCAL_WORLD_SIZE": str(place[1]),
        "GROUP_RANK": str(rank // place[1]),
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": str(meeting[1]),
        "TORCHELASTIC_RUN_ID": "kd-bench",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
    own = log if rank == 0 else log.with_name(f"{log.stem}.{rank}{log.suffix}")
    return replace(job, device=device, rank=rank, processes=size), own, environment


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


class Launch:
    """The runner's side of processes that a launcher has started: it tells the others what to do.

    Args:
        here: This process, the first.
        device: Its device.
    """

    def __init__(self, here: Launched, device: str) -> None:
        self.here, self.device = here, device
        self._store = _store(here)
        self._jobs = 0
        self._done = False
        atexit.register(self.leave)

    def start(self, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
        """Starts a worker here and, by way of the store, one in each of the other processes."""
        number, self._jobs = self._jobs, self._jobs + 1
        port = free_port()
        self._store.set(f"job/{number}", json.dumps({"job": asdict(job), "log": str(log), "port": port}))
        own = _begin(self.here, self.device, job, log, port)
        others = [LaunchedWorker(self._store, number, rank) for rank in range(1, self.here.size)]
        return local_process.WorkerGroup([own, *others])

    def leave(self) -> None:
        """Sends the others home."""
        if not self._done:
            self._done = True
            self._store.set(f"job/{self._jobs}", json.dumps({}))


class LaunchedWorker:
    """A worker that another process has started."""

    def __init__(self, store: Store, number: int, rank: int) -> None:
        self._store, self._number, self._rank = store, number, rank
        self._words = ""
        self._code: int | None = None

    def poll(self) -> tuple[list[dict[str, Any]], int | None]:
        """As ``local.Process``: what it reports, and how it ended."""
        key = f"end/{self._number}/{self._rank}"
        if self._code is None and self._store.check([key]):
            end = json.loads(self._store.get(key))
            self._words, self._code = end["words"], int(end["code"])
            return end["events"], self._code
        return [], self._code

    def stop(self) -> None:
        """Ends it."""
        self._store.set(f"over/{self._number}", "")

    def leave(self) -> None:
        """Leaves it to those processes: what the first of a cohort decides, all do."""

    def last_words(self) -> str:
        """The last line of its log."""
        return self._words


def follow(here: Launched, device: str) -> None:
    """Does what the first process says until it says that there is no more.

    Raises:
        RunFailed: Where the first process is gone.
    """
    from torch.distributed import DistError

    try:
        store = _store(here)
        number = 0
        while (told := _told(store, f"job/{number}")) != {}:
            process = _begin(here, device, WorkerJob(**told["job"]), Path(told["log"]), told["port"])
            heard: list[dict[str, Any]] = []
            try:
                while True:
                    events, code = process.poll()
                    heard += [event for event in events if event["event"] in ("error", "note")]
                    if code is not None or store.check([f"over/{number}"]):
                        break
                    time.sleep(_LOOK)
            finally:
                process.stop()
            end = {"code": -9 if code is None else code, "words": process.last_words(), "events": heard}
            store.set(f"end/{number}/{here.rank}", json.dumps(end))
            number += 1
    except (DistError, RuntimeError) as error:
        words = str(error).splitlines()
        raise RunFailed(f"process {here.rank}: lost the first process ({words[0] if words else error})") from error


def _begin(here: Launched, device: str, job: WorkerJob, log: Path, port: int) -> local_process.WorkerProcess:
    place, meeting = (here.local_rank, here.local_size), (here.address, port)
    return local_process.start(*_worker(job, log, here.rank, device, here.size, place, meeting))


def _told(store: Store, key: str) -> dict[str, Any]:
    while not store.check([key]):
        time.sleep(_LOOK)
    told: dict[str, Any] = json.loads(store.get(key))
    return told


def _store(here: Launched) -> Store:
    from torch.distributed import PrefixStore, TCPStore

    host = here.rank == 0 and not here.hosted
    store = TCPStore(here.address, here.port, is_master=host, wait_for_workers=False, timeout=timedelta(minutes=10))
    return PrefixStore(f"kd_bench/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def stay_or_follow(wanted: str, here: Launched | None) -> Launch | None:
    """The first of launched processes gets its ``Launch``; the others follow it and do not return.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.
        here: What the launcher says.
    """
    if here is None:
        return None
    found = local_process.devices(wanted)
    if found != ["cpu"] and len(found) < here.local_size:
        raise UserError(f"the launcher has started {here.local_size} processes for {len(found)} devices")
    device = "cpu" if found == ["cpu"] else found[here.local_rank]
    if here.rank == 0:
        return Launch(here, device)
    follow(here, device)
    sys.exit(0)
