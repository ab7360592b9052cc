"""The devices of this machine, and the cohorts that they carry at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_bench.launch import devices
from kd_bench.launch.devices import Devices, local_slots
from kd_bench.launch.executor import LocalExecutor
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError

GPUS = ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({}, [("cuda:0",), ("cuda:1",), ("cuda:2",)]),
        ({"jobs": 2}, [("cuda:0",), ("cuda:1",)]),
        ({"jobs": 4}, [("cuda:0",), ("cuda:1",), ("cuda:2",), ("cuda:0",)]),
        ({"devices": 2}, [("cuda:0", "cuda:1")]),
        ({"devices": 2, "jobs": 2}, [("cuda:0", "cuda:1"), ("cuda:0", "cuda:1")]),
    ],
)
def test_cohorts_are_spread_over_gpus(
    options: dict[str, int], slots: list[Devices], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "find_devices", lambda _: GPUS)
    run = RunOptions(out=tmp_path, **options)  # type: ignore[arg-type]
    assert local_slots(run) == slots
    executor = LocalExecutor(run, None)
    assert executor.free_slots == len(slots)
    assert executor.splits_cohorts == (len(set(slots)) == len(slots))


def test_a_cohort_needs_as_many_devices_as_it_is_to_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_devices", lambda _: GPUS[:1])
    with pytest.raises(UserError, match="--devices 2: there are 1: cuda:0"):
        local_slots(RunOptions(out=tmp_path, devices=2))


def test_cores_are_divided_among_cohorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_devices", lambda _: ["cpu"])
    monkeypatch.setattr(devices, "cpu_slots", lambda threads: 12 // threads)
    assert local_slots(RunOptions(out=tmp_path, threads=4)) == [("cpu",)] * 3
    assert local_slots(RunOptions(out=tmp_path, threads=2, devices=3)) == [("cpu", "cpu", "cpu")] * 2
    assert local_slots(RunOptions(out=tmp_path, threads=4, jobs=5)) == [("cpu",)] * 5
