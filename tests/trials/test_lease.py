"""Leases of trials."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_bench.trials import lease as lease_module
from kd_bench.trials.lease import Heartbeat, LeaseMonitor, acquire_lease


def foreign(folder: Path, number: int = 1, **changes) -> Path:
    """Writes a lease that another machine holds."""
    path = folder / f"lease.{number:06d}"
    content = {"host": "other", "here": "other/boot", "pid": 1, "born": 0.0, "token": "t", "released": False}
    path.write_text(json.dumps(content | changes))
    return path


def test_one_holder_at_a_time(tmp_path):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    assert lease is not None
    assert lease.is_held()
    assert acquire_lease(tmp_path, LeaseMonitor()) is None
    lease.release(finished=False)
    second = acquire_lease(tmp_path, LeaseMonitor())
    assert second is not None
    assert second.is_held()
    assert not lease.is_held()


def test_a_finished_trial_has_no_lease_files(tmp_path):
    foreign(tmp_path, released=True)
    lease = acquire_lease(tmp_path, LeaseMonitor())
    lease.release(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_dead_process_is_taken_over_at_once(tmp_path):
    code = (
        "from pathlib import Path; from kd_bench.trials.lease import acquire_lease, LeaseMonitor; "
        f"assert acquire_lease(Path({str(tmp_path)!r}), LeaseMonitor()); import os; os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert LeaseMonitor().live_holder(tmp_path) is None
    lease = acquire_lease(tmp_path, LeaseMonitor())
    assert lease.path.name == "lease.000002"


def test_a_reused_process_id_is_another_process(tmp_path):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    content = json.loads(lease.path.read_text())
    lease.path.write_text(json.dumps(content | {"born": content["born"] - 1000, "ticks": content["ticks"] - 100_000}))
    assert LeaseMonitor().live_holder(tmp_path) is None


def test_leases_of_earlier_versions(tmp_path):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    content = json.loads(lease.path.read_text())
    del content["ticks"]
    lease.path.write_text(json.dumps(content))
    assert LeaseMonitor().live_holder(tmp_path) is not None
    lease.path.write_text(json.dumps(content | {"born": content["born"] - 1000}))
    assert LeaseMonitor().live_holder(tmp_path) is None


def test_another_machine_counts_as_dead_only_without_heartbeats(tmp_path, monkeypatch):
    path = foreign(tmp_path)
    clock = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: clock[0])
    monitor = LeaseMonitor(expiry=90)
    assert monitor.live_holder(tmp_path) is not None
    clock[0] += 80
    assert acquire_lease(tmp_path, monitor) is None
    os.utime(path, (1, 1))  # a heartbeat of a machine whose clock is decades slow
    clock[0] += 80
    assert monitor.live_holder(tmp_path) is not None
    clock[0] += 95
    assert monitor.live_holder(tmp_path) is None
    assert acquire_lease(tmp_path, monitor).path.name == "lease.000002"


def test_a_holder_notices_that_it_was_replaced(tmp_path):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    foreign(tmp_path, number=2)
    assert not lease.is_held()
    lease.release(finished=True)
    assert (tmp_path / "lease.000002").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_lease_is_held_by_nobody(tmp_path, content):
    (tmp_path / "lease.000004").write_text(content)
    assert LeaseMonitor().live_holder(tmp_path) is None
    assert acquire_lease(tmp_path, LeaseMonitor()).path.name == "lease.000005"


def _race(folder: str, barrier, won) -> None:
    barrier.wait()
    if acquire_lease(Path(folder), LeaseMonitor()) is not None:
        with won.get_lock():
            won.value += 1
        time.sleep(1.0)  # others could take over from a dead holder


def test_one_of_many_processes_acquires_it(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        foreign(folder, released=True)
        barrier, won = context.Barrier(8), context.Value("i", 0)
        racers = [context.Process(target=_race, args=(str(folder), barrier, won)) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won.value == 1


def test_heartbeats(tmp_path):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    os.utime(lease.path, (1, 1))
    heartbeat = Heartbeat([lease], interval=0.05)
    deadline = time.monotonic() + 5
    while lease.path.stat().st_mtime < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    heartbeat.stop()
    assert lease.path.stat().st_mtime > 10


def test_a_clock_that_is_set_kills_no_holder(tmp_path, monkeypatch):
    assert acquire_lease(tmp_path, LeaseMonitor()) is not None
    create_time = lease_module.psutil.Process.create_time
    monkeypatch.setattr(lease_module.psutil.Process, "create_time", lambda self: create_time(self) + 3600)
    assert LeaseMonitor().live_holder(tmp_path) is not None
    assert acquire_lease(tmp_path, LeaseMonitor()) is None


def test_a_hidden_process_of_another_user_is_judged_by_its_heartbeats(tmp_path, monkeypatch):
    lease = acquire_lease(tmp_path, LeaseMonitor())

    def deny(pid: int, signal: int) -> None:
        raise PermissionError

    clock = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lease_module, "_start_ticks", lambda pid: 0)  # /proc/PID is not there
    monkeypatch.setattr(lease_module.os, "kill", deny)
    monitor = LeaseMonitor(expiry=90)
    assert monitor.live_holder(tmp_path).token == json.loads(lease.path.read_text())["token"]
    clock[0] += 95
    assert monitor.live_holder(tmp_path) is None


def test_a_lease_that_cannot_be_read_is_held_while_it_has_heartbeats(tmp_path, monkeypatch):
    lease = acquire_lease(tmp_path, LeaseMonitor())
    real, clock = os.open, [100.0]

    def stale(path, *arguments, **keywords):
        if "lease." in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(lease_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "open", stale)
    assert lease.is_held()
    monitor = LeaseMonitor(expiry=90)
    assert monitor.live_holder(tmp_path) is not None
    assert acquire_lease(tmp_path, monitor) is None
    clock[0] += 95
    assert monitor.live_holder(tmp_path) is None


def test_another_users_lease_that_cannot_be_removed_is_no_error(tmp_path, monkeypatch):
    foreign(tmp_path, released=True)
    lease = acquire_lease(tmp_path, LeaseMonitor())
    unlink = Path.unlink

    def sticky(path: Path, missing_ok: bool = False) -> None:
        if path.name == "lease.000001":
            raise PermissionError
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", sticky)
    lease.release(finished=True)
    assert LeaseMonitor().live_holder(tmp_path) is None


def test_a_full_disk_at_a_release_is_no_error(tmp_path, monkeypatch):
    lease = acquire_lease(tmp_path, LeaseMonitor())

    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lease_module, "write_atomic", full)
    lease.release(finished=False)
