"""The devices of this machine that cohorts can run on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.errors import UserError
from kd_bench.utils.memory import usable_memory

if TYPE_CHECKING:
    from kd_bench.launch.options import RunOptions

#: Devices of a cohort's workers, e.g. ("cuda:0", "cuda:1").
Devices = tuple[str, ...]

#: Bytes of a process that trains small networks on a CPU, most of them for torch and the images.
PROCESS_MEMORY = 3 * 2**29


def find_devices(device: str) -> list[str]:
    """Returns the devices to spread cohorts over, e.g. ``["cuda:0", "cuda:1"]`` or ``["cpu"]``.

    Args:
        device: ``cpu``; ``cuda`` for all GPUs; ``cuda:<n>``; or ``auto`` for all GPUs if there are any, else the CPU.

    Raises:
        UserError: If the device does not exist.
    """
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return ["cpu"]
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if device == "auto":
        return gpus or ["cpu"]
    matching = gpus if device == "cuda" else [gpu for gpu in gpus if gpu == device]
    if not matching:
        raise UserError(f"--device {device}: there is no such device; there are: {', '.join([*gpus, 'cpu'])}")
    return matching


def cpu_slots(threads: int) -> int:
    """Returns how many cohorts with so many threads the usable cores and the free memory carry at once, at least 1."""
    in_memory = usable_memory().available // PROCESS_MEMORY
    return max(1, min(usable_cores() // threads, in_memory))


def local_slots(options: RunOptions) -> list[Devices]:
    """Returns a tuple of devices for each cohort that can run at a time on this machine.

    Raises:
        UserError: If the device does not exist, or there are fewer devices than one cohort is to have.
    """
    count = options.devices or 1
    devices = find_devices(options.device)
    if devices == ["cpu"]:
        return [("cpu",) * count] * (options.jobs or cpu_slots(options.threads * count))
    if len(devices) < count:
        raise UserError(f"--devices {count}: there are {len(devices)}: {', '.join(devices)}")
    slots = [tuple(devices[start : start + count]) for start in range(0, len(devices) - count + 1, count)]
    return [slots[index % len(slots)] for index in range(options.jobs or len(slots))]


def share_gpus(devices: Iterable[str]) -> bool:
    """Whether some of the cohorts that run at once, each on one of the devices, share a GPU."""
    gpus = [device for device in devices if device != "cpu"]
    return len(set(gpus)) < len(gpus)


def _may_have_gpu() -> bool:
    """Returns False if there is certainly no GPU. This saves the seconds that importing torch takes."""
    drivers = ("nvidiactl", "nvidia0", "kfd", "dxg")
    return sys.platform != "linux" or any(Path("/dev", name).exists() for name in drivers)
