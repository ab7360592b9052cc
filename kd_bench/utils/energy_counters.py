"""Reads the energy counters of a GPU and of the CPU packages: those that ``zeus`` finds on this machine.

Counters are of whole devices, so that they include the work of other processes.
"""

from __future__ import annotations

import importlib.util
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Kinds of counters, as results and tables name them.
GPU, CPU = "GPU", "CPU package"

#: Columns of ``metrics.csv`` by kind of counter.
COLUMNS = {GPU: "gpu_joules", CPU: "cpu_joules"}


@dataclass(frozen=True)
class EnergyCounter:
    """A counter of the energy that a device has used since some time in the past.

    Attributes:
        kind: ``GPU`` or ``CPU``.
        device: What it counts; equal in processes that read the same counter.
        joules: Returns the energy.
    """

    kind: str
    device: str
    joules: Callable[[], float]


def open_counters(device: str) -> list[EnergyCounter]:
    """Returns the counters that can be read now; none without the package ``zeus``.

    Args:
        device: ``cpu``, whose counters are those of the CPU packages, or ``cuda:<n>``, which has its own besides.
    """
    if importlib.util.find_spec("zeus") is None:
        return []
    counters = []
    kind, _, index = device.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about rights that changing a device needs
        for candidates in ([_gpu(int(index or 0))] if kind != "cpu" else []), _packages():
            if candidates and all(_can_be_read(counter) for counter in candidates):
                counters += candidates
    return counters


def _can_be_read(counter: EnergyCounter | None) -> bool:
    try:
        return counter is not None and counter.joules() >= 0
    except Exception:  # the drivers' libraries have many types of errors
        return False


def _gpu(index: int) -> Any:
    """Returns the counter of a GPU, counted among those that this process sees; None if there is none."""
    try:
        from zeus.device import get_gpus

        gpus = get_gpus()
        visible = gpus.get_name(index)
    except Exception:
        return None
    gpu_name = f"{socket.gethostname()}, {visible} {index}"
    return EnergyCounter(GPU, gpu_name, lambda: gpus.get_total_energy_consumption(index) / 1000)


def _packages() -> list[Any]:
    """Returns the counters of all CPU packages; an empty list if there are none."""
    try:
        from zeus.device import get_cpus

        cpus = list(get_cpus().cpus)
    except Exception:
        return []
    host, counters = socket.gethostname(), []
    for number, cpu in enumerate(cpus):
        file = getattr(cpu, "rapl_file", None)
        read = _daemon_reader(cpu) if file is None else PowerZone(Path(file.path))
        counters.append(EnergyCounter(CPU, f"{host}, package {number}", read))
    return counters


def _daemon_reader(cpu: Any) -> Callable[[], float]:
    return lambda: float(cpu.get_total_energy_consumption().cpu_mj) / 1000


class PowerZone:
    """Reads a zone of Linux's power capping interface. Calling it returns joules.

    The kernel's counter begins again at zero after some minutes of full load. ``zeus`` watches for that with a process
    of its own, which outlives a training that is killed. Here it is noticed if the zone is read often enough.

    Args:
        folder: Folder of the zone, with ``energy_uj`` and ``max_energy_range_uj``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last, self._wrapped = 0, 0

    def __call__(self) -> float:
        """Returns the joules since some time in the past."""
        value = int((self._folder / "energy_uj").read_text())
        if value < self._last:
            self._wrapped += int((self._folder / "max_energy_range_uj").read_text())
        self._last = value
        return (self._wrapped + value) / 1e6
