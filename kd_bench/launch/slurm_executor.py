"""Cohorts as jobs of SLURM, by submitit: extra ``slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_bench.launch import local_process, remote
from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import UserError, first_line


class Slurm:
    """Each cohort is a job of its own; one that SLURM ended is submitted again from where it was.

    A job keeps where it is before its time is up, so ``minutes`` may be far less than a training takes. The jobs do not
    end with this command: started again, it finds those that run by their leases.

    Args:
        given: ``partition``, ``account``, ``qos``, ``constraint``; ``minutes`` of a job (240), its ``gpus`` (1, or none
            for the CPU), ``cpus`` (4) and ``memory_gb``; ``cluster`` "local" runs jobs as processes of this machine.
        folder: Where submitit keeps its files.
        jobs: Most jobs at once; None for as many as there are cohorts.
        device: The user's choice of device.

    Raises:
        UserError: Where submitit is not installed, or there is no SLURM.
    """

    def __init__(self, given: dict[str, Any], folder: Path, jobs: int | None, device: str) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor slurm needs a package more; get it with: pip install 'kd-bench[slurm]'"
            ) from None
        cluster = given.get("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"--executor slurm: {first_line(error)}") from None
        gpus = given.get("gpus", 0 if device == "cpu" else 1)
        self._device = "cuda:0" if gpus else "cpu"
        settings: dict[str, Any] = {
            "name": "kd-bench",
            "timeout_min": given.get("minutes", 240),
            "gpus_per_node": gpus,
            "cpus_per_task": given.get("cpus", 4),
        }
        if "memory_gb" in given:
            settings["mem_gb"] = given["memory_gb"]
        if cluster == "slurm":
            own = ("partition", "account", "qos", "constraint")
            settings |= {f"slurm_{name}": given[name] for name in own if name in given}
            settings["slurm_signal_delay_s"] = int(2 * remote.NOTICE)
        self._executor.update_parameters(**settings)
        self._most, self._going = jobs or remote.MANY, 0

    def free(self) -> bool:
        """Whether another job may be submitted."""
        return self._going < self._most

    def start(self, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
        """Submits a cohort."""
        self._going += 1
        return remote.start(lambda work: _Submitted(self._executor.submit(work)), job.on(self._device), log)

    def ended(self, group: local_process.WorkerGroup) -> None:
        """Counts it off."""
        self._going -= 1

    def close(self) -> None:
        """Does nothing: what was submitted has ended."""


class _Submitted:
    def __init__(self, job: Any) -> None:
        self._job = job

    def code(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result() or 0)
        except Exception:  # submitit's own, of several kinds: the job was cancelled, preempted, or its machine died
            return -15

    def cancel(self) -> None:
        if not self._job.done():
            self._job.cancel(check=False)
