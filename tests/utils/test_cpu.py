"""The cores that kd-bench uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kd_bench.launch import devices
from kd_bench.launch.executor import LocalExecutor
from kd_bench.launch.options import RunOptions
from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.memory import Memory


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot restrict a process to some cores")
def test_a_process_restricted_to_one_core_trains_one_cohort_at_a_time(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
        assert LocalExecutor(RunOptions(out=tmp_path, device="cpu"), None).free_slots == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_cohorts_at_a_time_are_limited_by_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    for free, slots in ((64, 8), (8, 5), (1, 1)):  # GiB
        monkeypatch.setattr(devices, "usable_memory", lambda free=free: Memory(64 * 2**30, free * 2**30))
        assert devices.cpu_slots(threads=1) == slots
    monkeypatch.undo()
    assert devices.share_gpus(["cuda:0", "cuda:1", "cuda:0"])
    assert not devices.share_gpus(["cpu", "cpu"]) and not devices.share_gpus(["cuda:0", "cuda:1"])
