"""Measures the time of a student's steps without synchronising a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from kd_bench.training.energy import EpochEnergy


class Stopwatch:
    """Adds up the time spent inside ``with stopwatch.running(device):`` blocks.

    On a GPU the time is that between two events, which are read once an epoch.

    Attributes:
        energy: The energy of an epoch that was interrupted.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self.energy = EpochEnergy()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Times the block."""
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
            return
        begin = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begin

    def add(self, seconds: float) -> None:
        """Adds time that was measured before."""
        self._seconds += seconds

    def restore(self, seconds: float, joules: Mapping[str, float]) -> None:
        """Adds what was measured in an epoch before a resume within it."""
        self.add(seconds)
        self.energy.restore(seconds, joules)

    def read(self) -> float:
        """Returns the seconds since the last call. Synchronises the device."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds
