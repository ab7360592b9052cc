"""Cohorts as SLURM jobs, submitted by submitit: extra ``slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_bench.launch.cluster_executor import STOP_SECONDS, ClusterExecutor, ClusterJob, RemoteJob
from kd_bench.utils.errors import UserError, first_line


class SlurmExecutor(ClusterExecutor):
    """Submits each cohort as a job. A job that SLURM ends is submitted again and resumes.

    A job saves checkpoints before its time limit, so ``minutes`` may be much less than a training takes. Jobs continue
    if this command ends. The next command finds the running jobs by their leases.

    Args:
        settings: ``partition``, ``account``, ``qos``, ``constraint``; ``minutes`` of a job (240), its ``gpus`` (1, or 0
            for the CPU), ``cpus`` (4) and ``memory_gb``; ``cluster`` "local" runs jobs as processes of this machine.
        folder: Folder of submitit's files.
        jobs, device: As in ``RunOptions``.

    Raises:
        UserError: If submitit is not installed, or there is no SLURM.
    """

    def __init__(self, settings: dict[str, Any], folder: Path, jobs: int | None, device: str) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor slurm needs another package; install it with: pip install 'kd-bench[slurm]'"
            ) from None
        gpus = settings.get("gpus", 0 if device == "cpu" else 1)
        super().__init__(jobs, gpus)
        cluster = settings.get("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"--executor slurm: {first_line(error)}") from None
        parameters: dict[str, Any] = {
            "name": "kd-bench",
            "timeout_min": settings.get("minutes", 240),
            "gpus_per_node": gpus,
            "cpus_per_task": settings.get("cpus", 4),
        }
        if "memory_gb" in settings:
            parameters["mem_gb"] = settings["memory_gb"]
        if cluster == "slurm":
            names = ("partition", "account", "qos", "constraint")
            parameters |= {f"slurm_{name}": settings[name] for name in names if name in settings}
            parameters["slurm_signal_delay_s"] = int(2 * STOP_SECONDS)
        self._executor.update_parameters(**parameters)

    def submit(self, work: RemoteJob) -> ClusterJob:
        """Submits a job."""
        return _SlurmJob(self._executor.submit(work))


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def exit_code(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result() or 0)
        except Exception:  # submitit raises several types if the job was cancelled or preempted, or its machine died
            return -15

    def cancel(self) -> None:
        if not self._job.done():
            self._job.cancel(check=False)
