"""A cohort that is kept within an epoch goes on from there to the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kd_bench.config.data import Pipeline
from kd_bench.data import registry
from kd_bench.data.file_dataset import FileDataset
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import Images, loaders
from kd_bench.training.student import StudentModule
from tests.data.photos import EVERYTHING, MINE, tree
from tests.training.parts import CPU, MemoryWriter, same, splits, trial

METHODS = (("none", {}), ("kd", {}), ("ikl_kd", {"weights": "class", "tau": 1}), ("crd", {"negatives": 8}))


class Keeping(MemoryWriter):
    """Remembers what was kept within epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, int], bytes] = {}

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        (self.kept[member.epochs_done, step],) = states


def cohort(images: Images, writers: list[Keeping], **changes: Any) -> CohortModule:
    trials = [trial(name, hyperparameters=settings, **changes) for name, settings in METHODS if name != "none"]
    taught = trials[0].teacher
    assert taught is not None
    teacher = build_network(taught, images)[0].eval()
    members = [
        build_student(member_trial, images, teacher, writer)
        for member_trial, writer in zip(trials, writers, strict=True)
    ]
    return CohortModule(members, teacher)


def go(whole: CohortModule, images: Images, *callbacks: pl.Callback) -> None:
    fit(whole, *loaders(whole.members[0].trial, images, CPU), CPU, callbacks)


@pytest.fixture(params=["in memory", "from files"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    if request.param == "in memory":
        return splits()
    tree(tmp_path / "mine", train=16)
    listed = registry.open_dataset(MINE, Pipeline(size=32, **EVERYTHING), tmp_path)
    assert isinstance(listed, FileDataset)
    return listed


def test_from_any_step_of_any_epoch(images: Images) -> None:
    changes: dict[str, Any] = {"epochs": 2, "ema": 0.9, "batch_size": 8}
    if isinstance(images, FileDataset):
        changes |= {"pipeline": images.pipeline.model_dump(), "augment": {"crop": 0, "flip": False}}
    undisturbed = [Keeping() for _ in METHODS[1:]]
    whole = cohort(images, undisturbed, **changes)
    go(whole, images, MidEpochCheckpoint(seconds=0.0))
    steps = len(loaders(whole.members[0].trial, images, CPU)[0])
    assert set(undisturbed[0].kept) == {(epoch, step) for epoch in range(2) for step in range(1, steps + 1)}
    for epoch_and_step in ((0, 2), (1, 1), (1, steps)):
        again = [Keeping() for _ in METHODS[1:]]
        resumed = cohort(images, again, **changes)
        for member, writer in zip(resumed.members, undisturbed, strict=True):
            member.restore_mid_epoch(torch.load(io.BytesIO(writer.kept[epoch_and_step]), weights_only=True))
        resumed = CohortModule(resumed.members, resumed.teacher.network)
        assert (resumed.start_epoch, resumed.first_step) == epoch_and_step
        go(resumed, images)
        for resumed_writer, undisturbed_writer in zip(again, undisturbed, strict=True):
            assert same(resumed_writer.states[-1], undisturbed_writer.states[-1]), epoch_and_step
            assert [row["epoch"] for row in resumed_writer.states[-1]["history"]] == [1, 2]


def test_it_stops_after_the_current_step() -> None:
    writer = Keeping()
    member = build_student(trial("none", batch_size=8), splits(), None, writer)
    requests = iter([False, False, True])
    with pytest.raises(StopRequested):
        go(CohortModule([member]), splits(), MidEpochCheckpoint(600.0, lambda: next(requests)))
    assert set(writer.kept) == {(0, 3)}
    assert not writer.states


def test_members_at_different_steps_do_not_go_on_together() -> None:
    members = [build_student(trial(name), splits(), None, Keeping()) for name in ("none", "none")]
    members[0].first_step = 3
    with pytest.raises(ValueError, match="same step"):
        CohortModule(members)
