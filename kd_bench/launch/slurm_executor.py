"""Cohorts as SLURM jobs, submitted by submitit: extra ``slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_bench.launch.cluster_executor import ClusterExecutor, RemoteJob
from kd_bench.launch.options import require_package
from kd_bench.launch.worker_protocol import STOP_SECONDS
from kd_bench.utils.errors import UserError, first_line, one_line


class SlurmExecutor(ClusterExecutor):
    """Submits each cohort as a job. A job that SLURM ends is submitted again and resumes.

    A job saves checkpoints before its time limit, so ``minutes`` may be much less than a training takes. Jobs continue
    if this command ends. The next command finds the running jobs by their leases.

    Args:
        settings: ``partition``, ``account``, ``qos``, ``constraint``; ``minutes`` of a job (240), its ``gpus`` (1, or 0
            for the CPU), ``cpus`` (4, or the threads if these are more) and ``memory_gb``; ``cluster`` "local" runs
            jobs as processes of this machine.
        folder: Folder of submitit's files.
        jobs, threads, device: As in ``RunOptions``.

    Raises:
        UserError: If submitit is not installed, or there is no SLURM.
    """

    ends_workers = False

    def __init__(self, settings: dict[str, Any], folder: Path, jobs: int | None, threads: int, device: str) -> None:
        require_package("submitit", "--executor slurm", "slurm")
        import submitit

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
            "cpus_per_task": settings.get("cpus", max(4, threads)),
        }
        if "memory_gb" in settings:
            parameters["mem_gb"] = settings["memory_gb"]
        if cluster == "slurm":
            names = settings.keys() & {"partition", "account", "qos", "constraint"}
            parameters |= {f"slurm_{name}": settings[name] for name in names}
            parameters["slurm_signal_delay_s"] = int(2 * STOP_SECONDS)
        self._executor.update_parameters(**parameters)

    def submit(self, work: RemoteJob) -> Any:
        """Submits a job.

        Raises:
            UserError: If SLURM refuses it.
        """
        try:
            return self._executor.submit(work)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"--executor slurm: a job cannot be submitted: {one_line(str(error))}; --executor-option sets what "
                "jobs ask for, and --jobs limits their number"
            ) from None

    def exit_code(self, job: Any) -> int | str | None:
        """Returns what a job returned; negative if SLURM has ended it."""
        if not job.done():
            return None
        try:
            outcome: int | str = job.result() or 0
            return outcome
        except Exception:  # submitit raises several types if the job was cancelled or preempted, or its machine died
            return -15

    def cancel(self, job: Any) -> None:
        """Ends a job."""
        if not job.done():
            job.cancel(check=False)
