"""Cohorts as tasks of a Ray cluster, an existing one or one of this machine: extra ``ray``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kd_bench.launch import local_process, remote
from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import UserError, first_line


class Ray:
    """Ray finds a place for each cohort, and has the others wait.

    Args:
        given: ``address`` of the cluster (by default the one that is there, else a new one on this machine); ``gpus``
            and ``cpus`` of a cohort, fractions allowed.
        jobs: Most cohorts at once; None for as many as the cluster has places for.
        threads: Threads of a cohort, which are its processors where ``cpus`` is not given.
        device: The user's choice of device.

    Raises:
        UserError: Where Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, given: dict[str, Any], jobs: int | None, threads: int, device: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs a package more; get it with: pip install 'kd-bench[ray]'") from None
        self._ray = ray
        try:
            ray.init(
                address=given.get("address"), log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            ) if not ray.is_initialized() else None
        except (ConnectionError, ValueError) as error:
            first = first_line(error)
            raise UserError(f"--executor-option address={given.get('address')}: {first}") from None
        gpus = given.get("gpus", 0.0 if device == "cpu" or not ray.cluster_resources().get("GPU") else 1.0)
        self._device = "cuda:0" if gpus else "cpu"
        self._task = ray.remote(num_cpus=given.get("cpus", float(threads)), num_gpus=gpus, max_retries=0, max_calls=1)(
            _run
        )
        self._most, self._going = jobs or remote.MANY, 0

    def free(self) -> bool:
        """Whether another cohort may be handed over."""
        return self._going < self._most

    def start(self, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
        """Hands a cohort over."""
        self._going += 1
        ray = self._ray
        return remote.start(lambda work: _Task(ray, self._task.remote(work)), job.on(self._device), log)

    def ended(self, group: local_process.WorkerGroup) -> None:
        """Counts it off."""
        self._going -= 1

    def close(self) -> None:
        """Leaves the cluster; one that was begun here ends."""
        self._ray.shutdown()


def _run(work: remote.Started) -> int:
    return work()


class _Task:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def code(self) -> int | None:
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError:  # its machine or its process is gone
            return -9

    def cancel(self) -> None:
        if self.code() is None:
            self._ray.cancel(self._reference, force=True)
