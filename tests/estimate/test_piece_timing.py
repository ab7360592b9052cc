"""The pieces of a step are times of an image, however many views of it a batch has. No clock is read."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from kd_bench.estimate import piece_timing
from kd_bench.estimate.piece_timing import PieceTimer
from kd_bench.launch.options import RunOptions
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from tests.training.parts import CPU, MemoryWriter, splits, trial

IMAGES = splits(train=24, test=8)


@pytest.mark.parametrize("second_view", [None, {"autoaugment": False}])
def test_pieces_are_seconds_of_an_image(
    second_view: dict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(piece_timing, "synchronized_time", lambda device: float(next(ticks)))
    adversarial = {"eps": 0.03, "steps": 1, "second_view": second_view}
    settings = trial("ikl_at", taught=False, adversarial=adversarial, input={"size": 16})
    cohort = CohortModule([build_student(settings, IMAGES, None, MemoryWriter())])
    pieces = PieceTimer(cohort, IMAGES, CPU, RunOptions(out=tmp_path), undecoded=False).time(4)
    assert pieces.images == 4
    assert pieces.students == [1 / 4]  # each piece takes one tick
    assert pieces.evaluation == [1 / 4 if second_view is None else 1 / 8]  # of the network on both views
