"""The memory of a machine, of a container and of a SLURM job; errors about memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from kd_bench.launch import devices
from kd_bench.launch.devices import cpu_slots
from kd_bench.utils.memory import Memory, is_out_of_memory, usable_memory

GIB = 2**30
MACHINE = Memory(256 * GIB, 200 * GIB)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=MACHINE.total, available=MACHINE.available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def _write(root: Path, **files: object) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == MACHINE


def test_a_container(tmp_path: Path) -> None:
    """It sees its own group as the root, and files that it has read do not count as used."""
    _write(tmp_path / "proc/self", cgroup="0::/")
    group = tmp_path / "sys/fs/cgroup"
    _write(group, **{"memory.max": 8 * GIB, "memory.current": 6 * GIB})
    assert usable_memory(tmp_path) == Memory(8 * GIB, 2 * GIB)
    _write(group, **{"memory.stat": f"anon 5\ninactive_file {3 * GIB}"})
    assert usable_memory(tmp_path) == Memory(8 * GIB, 5 * GIB)
    _write(group, **{"memory.max": "max"})
    assert usable_memory(tmp_path) == MACHINE


def test_a_slurm_job_whose_step_has_no_limit(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self", cgroup="0::/system.slice/job_7/step_0/user/task_0")
    group = tmp_path / "sys/fs/cgroup/system.slice/job_7"
    _write(group / "step_0", **{"memory.max": "max", "memory.current": GIB})
    _write(group, **{"memory.max": 16 * GIB, "memory.current": 4 * GIB})
    assert usable_memory(tmp_path) == Memory(16 * GIB, 12 * GIB)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    """Without a limit it has a number that is larger than any memory; the host's path is not there in a container."""
    _write(tmp_path / "proc/self", cgroup="4:cpu,cpuacct:/docker/1f\n3:memory:/docker/1f")
    group = tmp_path / "sys/fs/cgroup/memory"
    _write(group, **{"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": GIB})
    assert usable_memory(tmp_path) == MACHINE
    _write(group, **{"memory.limit_in_bytes": 4 * GIB, "memory.stat": f"total_inactive_file {GIB // 2}"})
    assert usable_memory(tmp_path) == Memory(4 * GIB, 3 * GIB + GIB // 2)


def test_a_container_has_as_many_cohorts_as_fit_into_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 32)
    monkeypatch.setattr(devices, "usable_memory", lambda: Memory(8 * GIB, 6 * GIB))
    assert cpu_slots(threads=1) == 4
    assert cpu_slots(threads=16) == 2
    monkeypatch.setattr(devices, "usable_memory", lambda: Memory(8 * GIB, 0))
    assert cpu_slots(threads=1) == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_errors_about_memory(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is expected
    assert is_out_of_memory(MemoryError())
