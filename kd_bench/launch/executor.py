"""Where cohorts run: an executor has places for so many at once, and starts them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kd_bench.launch import local_process, process_group, remote
from kd_bench.launch.worker import WorkerJob
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.launch.scheduler import RunOptions


class Executor(Protocol):
    """Starts cohorts. What they are told, and what they write, does not depend on which executor it is."""

    def free(self) -> bool:
        """Whether there is a place for another cohort."""

    def start(self, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
        """Starts a cohort's workers; the device is the executor's to say.

        Args:
            job: What to do.
            log: Where what they print is added.
        """

    def ended(self, group: local_process.WorkerGroup) -> None:
        """Told once a cohort has ended, whose place is free again."""

    def close(self) -> None:
        """Told when there is nothing more to be done."""


def make_executor(options: RunOptions, folder: Path, launch: process_group.Launch | None) -> Executor:
    """The executor that the user wants.

    Args:
        options: How to run.
        folder: The recipe's results.
        launch: The launched processes, if any.

    Raises:
        UserError: Where it cannot be had.
    """
    given = remote.options(options.executor, list(options.executor_options))
    if options.executor == "local":
        return Local(options, launch)
    if launch is not None or (options.devices or 1) > 1:
        raise UserError(f"--executor {options.executor}: gives each cohort one device; --devices must be left out")
    if options.executor == "ray":
        from kd_bench.launch.ray_executor import Ray

        return Ray(given, options.jobs, options.threads, options.device)
    from kd_bench.launch.slurm_executor import Slurm

    return Slurm(given, folder / "logs" / "slurm", options.jobs, options.device)


class Local:
    """This machine's devices, or all those that a launcher has started processes on.

    Args:
        options: How to run.
        launch: The launched processes; None for this machine's devices.

    Raises:
        UserError: Where there are too few devices.
    """

    def __init__(self, options: RunOptions, launch: process_group.Launch | None) -> None:
        self._launch = launch
        self._free = _places(options, launch)
        self._taken: dict[int, tuple[str, ...]] = {}
        # Cohorts that share a GPU must not take each other's memory: one that wants too much is to fail by itself.
        sharing = Counter(place for place in self._free)
        self._fraction = {place: 1 / count for place, count in sharing.items() if count > 1 and place[0] != "cpu"}

    def free(self) -> bool:
        """Whether there is a place for another cohort."""
        return bool(self._free)

    def start(self, job: WorkerJob, log: Path) -> local_process.WorkerGroup:
        """Starts a cohort's workers on the next free devices."""
        place = self._free.pop(0)
        group = process_group.start(job.on(place[0], self._fraction.get(place)), place, log, self._launch)
        self._taken[id(group)] = place
        return group

    def ended(self, group: local_process.WorkerGroup) -> None:
        """Frees the devices."""
        self._free.append(self._taken.pop(id(group)))

    def close(self) -> None:
        """Does nothing: the processes have ended."""


def _places(options: RunOptions, launch: process_group.Launch | None) -> list[tuple[str, ...]]:
    """The devices of each of the cohorts that run at once."""
    if launch is not None:
        return [(launch.device,)]
    each = options.devices or 1
    found = local_process.devices(options.device)
    if found == ["cpu"]:
        jobs = options.jobs or max(1, (os.cpu_count() or 1) // (options.threads * each))
        return [("cpu",) * each] * jobs
    if len(found) < each:
        raise UserError(f"--devices {each}: there are {len(found)}: {', '.join(found)}")
    places = [tuple(found[start : start + each]) for start in range(0, len(found) - each + 1, each)]
    return [places[index % len(places)] for index in range(options.jobs or len(places))]
