"""The devices of this machine that cohorts can run on."""

from __future__ import annotations

import sys
from pathlib import Path

from kd_bench.utils.errors import UserError


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


def _may_have_gpu() -> bool:
    """Returns False if there is certainly no GPU. This saves the seconds that importing torch takes."""
    drivers = ("nvidiactl", "nvidia0", "kfd", "dxg")
    return sys.platform != "linux" or any(Path("/dev", name).exists() for name in drivers)
