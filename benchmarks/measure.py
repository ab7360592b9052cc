"""Measures CPU time and peak memory of small computations that take turns."""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would complain that there is no GPU

T = TypeVar("T")


def peak_bytes(task: Callable[[], T]) -> tuple[int, T]:
    """Returns the most bytes that torch's allocator had in use, above those before, and the result of ``task``.

    Includes temporary tensors, but not the memory that libraries below torch allocate themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = task()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak, result


def time_in_turns(
    tasks: Sequence[Callable[[], object]], rounds: int, budget: float, turn: float = 0.02
) -> list[list[float]]:
    """Returns the CPU seconds per call of each task, one number per round, in which the tasks take turns.

    There are at most ``rounds`` rounds. None begins after ``budget`` seconds by the wall clock. A turn takes at least
    ``turn`` seconds.
    """
    begin = time.perf_counter()
    first_calls = [cpu_seconds(task) for task in tasks]
    if time.perf_counter() - begin > budget:
        return [[seconds] for seconds in first_calls]
    calls = [max(1, math.ceil(turn / seconds)) for seconds in first_calls]
    seconds: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, task_seconds, number in zip(tasks, seconds, calls, strict=True):
            task_seconds.append(cpu_seconds(task, number))
        if time.perf_counter() - begin > budget:
            break
    return seconds


def cpu_seconds(task: Callable[[], object], calls: int = 1) -> float:
    """Returns the CPU seconds per call, over all threads of this process."""
    begin = time.process_time()
    for _ in range(calls):
        task()
    return (time.process_time() - begin) / calls


def wall_and_cpu_seconds(task: Callable[[], object]) -> tuple[float, float]:
    """Returns the wall seconds of a task, and the CPU seconds of this process and its finished child processes."""
    wall, cpu = time.perf_counter(), total_cpu_seconds()
    task()
    return time.perf_counter() - wall, total_cpu_seconds() - cpu


def total_cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its finished child processes so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Returns the ratio of each round. The load of the machine cancels, because it is the same for both."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the median of ``ratios``."""
    return statistics.median(ratios(numerators, denominators))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the quartiles, the median in the middle."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    return low, middle, high
