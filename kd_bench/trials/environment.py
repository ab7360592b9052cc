"""What a trial ran on, for ``environment.json``."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

PACKAGES = ("kd-bench", "torch", "torchvision", "pytorch-lightning", "timm", "numpy", "safetensors")


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine, device and the number of threads that results are bitwise repeatable under."""
    import torch

    place = torch.device(device)
    return {
        "started": now(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if place.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if place.type == "cuda" else None,
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolution": torch.backends.cudnn.allow_tf32,
        }
        if place.type == "cuda"
        else None,
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "command": os.environ.get("KD_BENCH_COMMAND", " ".join(sys.argv)),
    }


def bits_depend_on(device: Any, threads: int) -> dict[str, Any]:
    """What of a machine the last bits of a network's outputs depend on."""
    import torch

    return {
        "device": torch.device(device).type,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "packages": {name: _version(name) for name in ("kd-bench", "torch", "timm")},
    }


def peak_memory(device: Any) -> int:
    """Bytes that torch has had on a GPU at most, or this process on a CPU; 0 where nobody tells."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage, whose figure begins with that of the process that started this one.
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
