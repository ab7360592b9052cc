"""Cohorts as tasks of a Ray cluster, an existing one or one on this machine: extra ``ray``."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from kd_bench.launch.cluster_executor import ClusterExecutor, RemoteJob
from kd_bench.launch.options import require_package
from kd_bench.utils.errors import UserError, first_line


class RayExecutor(ClusterExecutor):
    """Submits cohorts to Ray, which places and queues them.

    Args:
        settings: ``address`` of the cluster (default: the running one, else a new one on this machine); ``gpus`` and
            ``cpus`` of a cohort (default: its threads), fractions allowed.
        jobs, threads, device: As in ``RunOptions``.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, settings: dict[str, Any], jobs: int | None, threads: int, device: str) -> None:
        require_package("ray", "--executor ray", "ray")
        import ray

        self._ray, address = ray, settings.get("address")
        try:
            if not ray.is_initialized():
                chosen = address or _reachable_or_new()
                ray.init(address=chosen, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            option = f"--executor-option address={address}" if address else "--executor ray"
            raise UserError(f"{option}: {first_line(error)}") from None
        has_gpu = bool(ray.cluster_resources().get("GPU"))
        if device == "cuda" and not has_gpu and "gpus" not in settings:
            raise UserError(
                "--device cuda: the Ray cluster has no GPU now; if it gets one when a task asks for it, write: "
                "--executor-option gpus=1"
            )
        gpus = settings.get("gpus", 0.0 if device == "cpu" or not has_gpu else 1.0)
        super().__init__(jobs, gpus)
        resources = {"num_cpus": settings.get("cpus", float(threads)), "num_gpus": gpus}
        try:
            self._task = ray.remote(**resources, max_retries=0, max_calls=1)(_run)
        except ValueError as error:  # e.g. a fraction of more than one GPU
            raise UserError(f"--executor-option: {first_line(error)}") from None

    def submit(self, work: RemoteJob) -> Any:
        """Submits a task."""
        return self._task.remote(work)

    def exit_code(self, job: Any) -> int | str | None:
        """Returns what a task returned; negative if its machine or its process has died."""
        if not self._ray.wait([job], timeout=0)[0]:
            return None
        try:
            outcome: int | str = self._ray.get(job)
            return outcome
        except self._ray.exceptions.RayError:
            return -9

    def request_stop(self, job: Any) -> None:
        """Raises KeyboardInterrupt in a task, which then saves checkpoints."""
        if self.exit_code(job) is None:
            self._ray.cancel(job)

    def cancel(self, job: Any) -> None:
        """Ends a task."""
        if self.exit_code(job) is None:
            self._ray.cancel(job, force=True)

    def close(self) -> None:
        """Disconnects from the cluster. A cluster that this process has started ends."""
        self._ray.shutdown()


def _run(work: RemoteJob) -> int | str:
    return work()


def _reachable_or_new() -> str | None:
    """Returns the address for ``ray.init``: None for the cluster of this machine if it runs, and "local" for a new one.

    A cluster that was killed leaves a file with its address behind, and Ray would wait for that cluster.
    """
    if os.environ.get("RAY_ADDRESS"):
        return None
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        host, _, port = file.read_text(encoding="utf-8").strip().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5):
            return None
    except (OSError, ValueError):
        return "local"
