"""The seconds of a member are those that it would take alone, whatever the other members need of the teacher."""

from __future__ import annotations

import pytest

from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.training.teacher import Teacher
from kd_bench.types import Batch, Outputs
from tests.training.parts import same, trial
from tests.training.tape import TapeRecorder
from tests.training.test_recorded import run

STEPS = 5

#: Seconds of a pass of the teacher, by batch-norm mode: much more than the passes of the small network take.
SECONDS: dict[TeacherBatchNorm, float] = {"running": 100.0, "batch": 1000.0}


@pytest.fixture(autouse=True)
def _slow_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by ``SECONDS`` during a pass of the teacher."""
    passed = 0.0
    original = Teacher.forward

    def forward(self: Teacher, batch: Batch, norm_mode: TeacherBatchNorm) -> Outputs:
        nonlocal passed
        passed += SECONDS[norm_mode]
        return original(self, batch, norm_mode)

    class Clock:
        def perf_counter(self) -> float:
            return passed

    monkeypatch.setattr(Teacher, "forward", forward)
    monkeypatch.setattr("kd_bench.training.stopwatch.time", Clock())


def test_a_member_gets_the_passes_that_its_method_reads() -> None:
    names = ("none", "kd", "ab", "ofd")
    writers, _ = run([trial(name, taught=name != "none") for name in names], None)
    seconds = {}
    for name, writer in zip(names, writers, strict=True):
        state = writer.states[-1]
        seconds[name] = [round(row["seconds"] - row["own_seconds"]) for row in state["history"]]
        if name == "ab":
            seconds["preparation of ab"] = [round(row["seconds"] - row["own_seconds"]) for row in state["preparation"]]
    assert seconds == {
        "none": [0, 0, 0],
        "kd": [500, 500, 500],
        "ab": [0, 0, 0],  # what its preparation has read of the teacher is no longer needed
        "preparation of ab": [500, 500],
        "ofd": [5000, 5000, 5000],
    }


def test_a_member_of_a_recorded_cohort_gets_the_passes_that_its_method_reads() -> None:
    trials = [trial("kd"), trial("ofd")]
    writers, cohort = run(trials, TapeRecorder(refuses=True))  # the clock does not go on when a recording is replayed
    assert cohort.recorded is not None
    times = cohort.recorded.times
    assert times is not None
    assert times.teacher == SECONDS
    for writer, norm_mode in zip(writers, ("running", "batch"), strict=True):
        row = writer.states[-1]["history"][-1]
        assert row["seconds"] - row["own_seconds"] == pytest.approx(STEPS * (times.batch + SECONDS[norm_mode]))
    replayed, _ = run(trials, TapeRecorder())
    assert all(same(writer.states, other.states) for writer, other in zip(writers, replayed, strict=True))
