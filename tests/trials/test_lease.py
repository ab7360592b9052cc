"""Who may work on a trial."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_bench.trials import lease as leases
from kd_bench.trials.lease import Heartbeat, Watch, claim


def foreign(folder: Path, number: int = 1, **changes) -> Path:
    """A lease that another machine holds."""
    path = folder / f"lease.{number:06d}"
    content = {"host": "other", "here": "other/boot", "pid": 1, "born": 0.0, "token": "t", "released": False}
    path.write_text(json.dumps(content | changes))
    return path


def test_one_holder_at_a_time(tmp_path):
    mine = claim(tmp_path, Watch())
    assert mine is not None
    assert mine.held()
    assert claim(tmp_path, Watch()) is None
    mine.release(finished=False)
    again = claim(tmp_path, Watch())
    assert again is not None
    assert again.held()
    assert not mine.held()


def test_a_finished_trial_keeps_no_trace(tmp_path):
    foreign(tmp_path, released=True)
    mine = claim(tmp_path, Watch())
    mine.release(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_dead_process_is_taken_over_at_once(tmp_path):
    code = (
        "from pathlib import Path; from kd_bench.trials.lease import claim, Watch; "
        f"assert claim(Path({str(tmp_path)!r}), Watch()); import os; os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert Watch().holder(tmp_path) is None
    mine = claim(tmp_path, Watch())
    assert mine.path.name == "lease.000002"


def test_a_process_id_that_was_given_anew_is_another_process(tmp_path):
    mine = claim(tmp_path, Watch())
    content = json.loads(mine.path.read_text())
    mine.path.write_text(json.dumps(content | {"born": content["born"] - 1000}))
    assert Watch().holder(tmp_path) is None


def test_another_machine_counts_as_gone_only_after_silence(tmp_path, monkeypatch):
    path = foreign(tmp_path)
    clock = [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    watch = Watch(expiry=90)
    assert watch.holder(tmp_path) is not None
    clock[0] += 80
    assert claim(tmp_path, watch) is None
    os.utime(path, (1, 1))  # a sign of life by a machine whose clock is decades slow
    clock[0] += 80
    assert watch.holder(tmp_path) is not None
    clock[0] += 95
    assert watch.holder(tmp_path) is None
    assert claim(tmp_path, watch).path.name == "lease.000002"


def test_a_holder_notices_that_it_was_replaced(tmp_path):
    mine = claim(tmp_path, Watch())
    foreign(tmp_path, number=2)
    assert not mine.held()
    mine.release(finished=True)
    assert (tmp_path / "lease.000002").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_lease_is_held_by_nobody(tmp_path, content):
    (tmp_path / "lease.000004").write_text(content)
    assert Watch().holder(tmp_path) is None
    assert claim(tmp_path, Watch()).path.name == "lease.000005"


def _race(folder: str, barrier, won) -> None:
    barrier.wait()
    if claim(Path(folder), Watch()) is not None:
        with won.get_lock():
            won.value += 1
        time.sleep(1.0)  # a holder that is gone would leave the way open


def test_of_many_that_want_it_one_gets_it(tmp_path):
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


def test_signs_of_life(tmp_path):
    mine = claim(tmp_path, Watch())
    os.utime(mine.path, (1, 1))
    heartbeat = Heartbeat([mine], interval=0.05)
    deadline = time.monotonic() + 5
    while mine.path.stat().st_mtime < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    heartbeat.stop()
    assert mine.path.stat().st_mtime > 10
