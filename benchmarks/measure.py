"""Time and peak memory of small computations on the CPU, for contestants that take turns."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; it would complain that there is no GPU

from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def peak_bytes(task: Callable[[], T]) -> tuple[int, T]:
    """Most bytes that torch's allocator had given out at once, above what it had before; and what ``task`` returns.

    Temporaries are in it; what libraries below torch may take for themselves is not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = task()
    events = [one for one in found.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return most, result


def seconds(tasks: Sequence[Callable[[], object]], rounds: int, budget: float, turn: float = 0.02) -> list[list[float]]:
    """CPU seconds a call of each of ``tasks``, which take turns of at least ``turn`` seconds, a number for each round.

    After ``budget`` seconds, by the clock on the wall, no further round begins.
    """
    begin = time.perf_counter()
    firsts = [once(task) for task in tasks]
    if time.perf_counter() - begin > budget:
        return [[first] for first in firsts]
    calls = [max(1, math.ceil(turn / first)) for first in firsts]
    found: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, times, number in zip(tasks, found, calls, strict=True):
            times.append(once(task, number))
        if time.perf_counter() - begin > budget:
            break
    return found


def ratio(ones: list[float], others: list[float]) -> float:
    """How many times longer the others take: the median over rounds, so that the machine's mood is in both."""
    return statistics.median(b / a for a, b in zip(ones, others, strict=True))


def spread(values: list[float]) -> tuple[float, float, float]:
    """Quartiles, the median in the middle."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return low, middle, high


def once(task: Callable[[], object], calls: int = 1) -> float:
    """CPU seconds a call."""
    begin = time.process_time()  # of all threads, and only while this process has its turn
    for _ in range(calls):
        task()
    return (time.process_time() - begin) / calls
