"""The memory that this process may use, and errors about memory. Does not import torch, which needs some itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Parts of messages of errors without a type of their own: of the CPU's allocator, of CUDA outside of torch's
#: allocator, and of cuBLAS and cuDNN.
_MESSAGES = (
    "not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)

#: Files of Linux's control groups, by version: limit, usage, and the key of the file cache in ``memory.stat``.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Memory(NamedTuple):
    """Bytes of memory: what this process and others may use in all, and what is still free."""

    total: int
    available: int


def usable_memory(root: Path = Path("/")) -> Memory:
    """Returns the memory of the machine, or of the container or SLURM job if that has less.

    Args:
        root: The folder with ``proc`` and ``sys``.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for folder, version in _control_groups(root):
        limit_file, usage_file, cache_key = _FILES[version]
        with suppress(OSError, ValueError):  # no such file, or no limit: "max"
            limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
            cached = 0
            with suppress(OSError, ValueError, KeyError):  # the system drops these files from memory when it needs it
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(stat[cache_key])
            total, available = min(total, limit), min(available, max(0, limit - usage + cached))
    return Memory(total, available)


def _control_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """Yields the folders of this process's control groups for memory, each before its parent, and their version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version, mount = (2, "sys/fs/cgroup") if not controllers else (1, "sys/fs/cgroup/memory")
        if version == 1 and "memory" not in controllers.split(","):
            continue
        # A container may see its own group as the root, and its path as that on the host.
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            yield root / mount / part, version


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return any(message in str(error) for message in _MESSAGES)
