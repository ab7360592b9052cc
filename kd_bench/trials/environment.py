"""The machine and the software that a trial ran on, for ``environment.json``."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

PACKAGES = ("kd-bench", "torch", "torchvision", "pytorch-lightning", "timm", "numpy", "safetensors")


def utc_timestamp() -> str:
    """Returns the current UTC time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_environment(device: str, threads: int) -> dict[str, Any]:
    """Returns versions, machine, device and number of threads. Results are bitwise equal if all of these are equal."""
    import torch

    return {
        "started": utc_timestamp(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
        "code": code_digest(),
        **({} if (revision := _git_commit()) is None else {"commit": revision}),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        **_device_properties(torch.device(device)),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "command": os.environ.get("KD_BENCH_COMMAND", " ".join(sys.argv)),
    }


@cache
def code_digest() -> str:
    """Returns a digest of the package's source files: 16 hexadecimal digits of SHA-256."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _git_commit() -> str | None:
    """Returns the commit that is checked out, if the package lies in a git checkout; None otherwise.

    Changes that are not committed do not show here, but in ``code_digest``.
    """
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return _commit(head)
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return _commit((git / name).read_text(encoding="utf-8").strip())
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((_commit(line.partition(" ")[0]) for line in packed if line.endswith(f" {name}")), None)


def _commit(text: str) -> str | None:
    return text if re.fullmatch("[0-9a-f]{40,64}", text) else None


def numerics_fingerprint(device: Any, threads: int) -> dict[str, Any]:
    """Returns the properties of a machine that the last bits of a network's outputs depend on."""
    import torch

    fingerprint = {
        "device": torch.device(device).type,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "packages": {name: _version(name) for name in ("kd-bench", "torch", "timm")},
    }
    if torch.device(device).type == "cuda":
        fingerprint |= _device_properties(torch.device(device))
    return fingerprint


def _device_properties(device: Any) -> dict[str, Any]:
    import torch

    gpu = device if device.type == "cuda" else None
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "device_name": torch.cuda.get_device_name(gpu) if gpu else _processor(),
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": cudnn.version() if gpu else None,
        "tf32": {"matmul": matmul.allow_tf32, "convolution": cudnn.allow_tf32} if gpu else None,
    }


def reset_peak_memory(device: Any) -> None:
    """Makes ``peak_memory`` count from now on. On a CPU without Linux it counts from the start of the process."""
    import torch

    if torch.device(device).type == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: Any) -> int:
    """Returns the peak memory of torch on a GPU, or of this process on a CPU, in bytes; 0 if unknown.

    On a GPU this is the memory that torch has reserved, because the memory of recorded steps counts as free, and not as
    allocated, between replays.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    # getrusage starts at the peak of the parent process, so it is the second choice.
    with suppress(OSError):
        match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
