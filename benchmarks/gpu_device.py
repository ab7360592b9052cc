"""Times, memory and facts of a GPU. All of it also works on a CPU, so that the benchmark itself can be tested there."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from kd_bench.trials.environment import describe_environment
from kd_bench.utils.cuda_queues import queue_variables

# Workers have this variable, too. It is read when CUDA starts.
os.environ.update(queue_variables())
# After the profiler has looked at CUDA graphs, they may fail if it is unloaded. Read when it is loaded.
os.environ.setdefault("TEARDOWN_CUPTI", "0")
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")

_DRIVER = Path("/proc/driver/nvidia/version")


def describe_device(device: torch.device) -> dict[str, Any]:
    """Returns the card and the versions that times and last bits depend on."""
    environment = describe_environment(str(device), torch.get_num_threads())
    keys = ("device_name", "cuda", "cudnn", "tf32", "packages", "python", "processor", "cores")
    facts = {key: environment[key] for key in keys} | {"driver": _driver_version()}
    facts["queues"] = os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"memory": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
    return facts


def _driver_version() -> str | None:
    """Returns the version of NVIDIA's driver; None if the system does not say it. Starts no process."""
    with suppress(OSError):
        match = re.search(r"\s(\d+\.[\d.]+)\s", _DRIVER.read_text(encoding="utf-8"))
        return match[1] if match else None
    return None


def synchronize(device: torch.device) -> None:
    """Waits for all operations of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_usable(device: torch.device) -> bool:
    """Whether a device works. After some errors, e.g. an illegal memory access, every operation of a process fails."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def step_seconds(step: Callable[[], object], steps: int, rounds: int, device: torch.device) -> list[float]:
    """Returns the seconds per call of ``step`` in each round. On a GPU they are those between two events."""
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(steps):
                step()
            end.record()
            synchronize(device)
            seconds.append(start.elapsed_time(end) / 1000 / steps)
        else:
            begin = time.perf_counter()
            for _ in range(steps):
                step()
            seconds.append((time.perf_counter() - begin) / steps)
    return seconds


def start_seconds(device: torch.device, operations: int) -> float:
    """Returns the seconds that it takes to start one operation from Python."""
    tensor = torch.zeros(1, device=device)
    for _ in range(2):  # the first time, the operation is loaded
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(operations):
            tensor.add_(1)
        synchronize(device)
        seconds = time.perf_counter() - begin
    return seconds / operations


def reset_memory(device: torch.device) -> None:
    """Frees what is no longer used, and makes ``peak_bytes`` count from now on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Returns the most bytes that torch has reserved on a GPU, those of the recordings included; None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def busy_fraction(step: Callable[[], object], steps: int, device: torch.device) -> float | None:
    """Returns the fraction of the time of a few steps in which the GPU runs at least one kernel; None on a CPU."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        synchronize(device)
    events = profiler.profiler.kineto_results.events()
    on_gpu = torch.autograd.DeviceType.CUDA
    return union_fraction(
        (event.start_ns(), event.start_ns() + event.duration_ns()) for event in events if event.device_type() == on_gpu
    )


def union_fraction(intervals: Iterable[tuple[int, int]]) -> float:
    """Returns the length of the union of intervals, as a fraction of the time from the first start to the last end.

    Raises:
        ValueError: If there is no interval.
    """
    covered, first, last = 0, None, 0
    for start, end in sorted(intervals):
        if first is None:
            first = last = start
        covered += max(0, end - max(start, last))
        last = max(last, end)
    if first is None or last == first:
        raise ValueError("the profiler has seen no kernel")
    return covered / (last - first)
