"""Ranks of the processes that share a cohort's batches, as torchrun or SLURM set them, and what trials allow.

Whoever starts the processes, a worker has the environment variables that torchrun sets, because Lightning reads these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.utils.errors import UserError


@dataclass(frozen=True)
class RankEnvironment:
    """One of several processes, one per device, in the terms of torchrun's environment variables.

    Attributes:
        local_world_size: Number of processes on each machine.
        master_addr: Machine of rank 0.
        master_port: Port of the key-value store on that machine.
        agent_store: Whether the launcher, rather than rank 0, hosts the store.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    agent_store: bool = False

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world_size // self.local_world_size

    def variables(self) -> dict[str, str]:
        """Returns the environment variables that torchrun would set."""
        values = {name.upper(): str(value) for name, value in asdict(self).items() if name != "agent_store"}
        return values | {
            "GROUP_RANK": str(self.rank // self.local_world_size),
            "TORCHELASTIC_RUN_ID": "kd-bench",
            "TORCHELASTIC_USE_AGENT_STORE": str(self.agent_store),
        }


def launcher_environment(environment: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """Reads the environment of torchrun or SLURM; None if the command was not started by one, or as the only process.

    Raises:
        UserError: If SLURM has started different numbers of tasks on its nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        rank, size, local_rank, local_size, port = (int(environment[name]) for name in names)
        agent_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address = environment["MASTER_ADDR"]
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        # The variables of the step, because those of the job count many tasks in a batch script, which is one process.
        size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        if size % nodes:
            raise UserError(f"srun: {size} tasks on {nodes} nodes; each node must have the same number of tasks")
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        local_size, agent_store = size // nodes, False
        address, port = _slurm_master(environment)
    else:
        return None
    return RankEnvironment(rank, size, local_rank, local_size, address, port, agent_store) if size > 1 else None


def _slurm_master(environment: Mapping[str, str]) -> tuple[str, int]:
    """Returns the first machine of a SLURM step, and a port that depends on the job, as Lightning chooses them."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    address = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    port = environment.get("MASTER_PORT") or 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])
    return address, int(port)


def world_size(devices: int | None, nodes: int | None, launcher: RankEnvironment | None) -> int:
    """Returns the number of processes that share a cohort's batches: ``devices`` per machine, on ``nodes`` machines.

    Raises:
        UserError: If options and launcher disagree, or if several machines are wanted without a launcher.
    """
    if launcher is None:
        if nodes is not None and nodes > 1:
            raise UserError(
                f"--nodes {nodes}: start the command once per device on each machine, with torchrun "
                f"--nnodes {nodes} --nproc-per-node {devices or 'DEVICES'} ... -m kd_bench run, or with srun"
            )
        return devices or 1
    started = (("--devices", devices, launcher.local_world_size), ("--nodes", nodes, launcher.nodes))
    for option, expected, count in started:
        if expected not in (None, count):
            raise UserError(f"{option} {expected}: the launcher has started processes for {count}")
    return launcher.world_size


def check_divisible(planned: Iterable[PlannedTrial], processes: int) -> None:
    """Checks that the processes can share the batches of these trials and of their teachers.

    Each process takes whole micro-batches, because batch norms and losses see one micro-batch, and the result must not
    depend on the number of processes.

    Raises:
        UserError: If they cannot.
    """
    candidates = (trial for cell in planned for trial in (cell.trial, cell.trial.teacher))
    for trial in {trial.id: trial for trial in candidates if isinstance(trial, Trial)}.values():
        size = trial.micro_batch or trial.batch_size
        parts = trial.batch_size // size
        if trial.sync_batch_norm and parts != processes:
            raise UserError(
                f"sync_batch_norm: a batch of {trial.batch_size} images in micro-batches of {size} needs "
                f"{parts} processes, one each (there would be {processes}): --devices, --nodes, or another micro_batch"
            )
        if processes == 1:
            continue
        if trial.pipeline is None:
            raise UserError(
                f"--devices: {trial.dataset.name} is held in memory, and each of its cohorts trains on one device; "
                "leave --devices out, and cohorts are spread over all devices"
            )
        if parts % processes:
            share = trial.batch_size // processes
            advice = "" if trial.batch_size % processes else f"; --set micro_batch={share} makes trials that they can"
            raise UserError(
                f"--devices: batch norms and losses of {trial.model} see {size} images at once, so {processes} "
                f"processes cannot share its batch of {trial.batch_size}, which is in {parts} parts{advice}"
            )
