"""Checkpoints that cannot be used, and processes that have lost their trial."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench.config.trial import Trial
from kd_bench.training.build import build_network, build_student
from kd_bench.training.result_writer import serialize_state
from kd_bench.training.student import StudentModule
from kd_bench.trials import result_writer
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from kd_bench.trials.result_writer import LostLease, TrialResultWriter
from kd_bench.utils.errors import UserError
from tests.training.parts import first_difference, splits, trial
from tests.trials.test_lease import foreign

DATA = splits()
ROW = {"epoch": 1, "top1": 50.0, "top5": 98.0, "test_loss": 1.0, "seconds": 2.0, "members": 1}


class Started:
    """A trial whose training has begun in this process."""

    def __init__(self, root: Path, method: str = "fitnet", **settings: Any) -> None:
        self.trial = trial(method, **settings)
        self.folder = TrialFolder(root / self.trial.id)
        self.folder.create(self.trial)
        lease = acquire_lease(self.folder.path, LeaseMonitor())
        assert lease is not None
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.writer = TrialResultWriter(self.folder, lease, self._send, None, len(DATA.train_labels))

    def _send(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    def member(self) -> StudentModule:
        assert isinstance(self.trial.teacher, Trial)
        return build_student(self.trial, DATA, build_network(self.trial.teacher, DATA)[0].eval(), self.writer)


@pytest.fixture
def started(tmp_path: Path) -> Started:
    return Started(tmp_path)


def later_state(member: StudentModule) -> dict[str, Any]:
    """A state after one epoch, with other weights in the network."""
    state = copy.deepcopy(member.state())
    state["network"] = {name: value + 1 for name, value in state["network"].items()}
    return state | {"history": [ROW]}


def test_a_checkpoint_that_fits_in_part_leaves_nothing_behind(started: Started) -> None:
    state = later_state(started.member())
    state["method"] = {**state["method"], "of_another_version": torch.zeros(1)}
    started.folder.write_checkpoint(1, serialize_state(state))
    member = started.member()
    started.writer.resume(member)
    assert not first_difference(member.state(), started.member().state())
    ((kind, fields),) = started.events
    assert kind == "note"
    assert fields["text"].endswith("; the trial starts again from the beginning")


def test_a_good_checkpoint_follows_one_that_fits_in_part(started: Started) -> None:
    good = later_state(started.member())
    started.folder.write_checkpoint(1, serialize_state(good))
    bad = copy.deepcopy(good)
    bad["network"] = {name: value + 1 for name, value in bad["network"].items()}
    bad["method"] = {**bad["method"], "of_another_version": torch.zeros(1)}
    started.folder.write_checkpoint(2, serialize_state(bad))
    member = started.member()
    started.writer.resume(member)
    assert not first_difference(member.state(), good)


def test_too_little_memory_makes_no_checkpoint_corrupt(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    started.folder.write_checkpoint(1, serialize_state(later_state(started.member())))

    def fail(content: bytes) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    monkeypatch.setattr(result_writer, "deserialize_state", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        started.writer.resume(started.member())
    assert started.folder.epochs_done() == 1


def test_a_checkpoint_that_cannot_be_read_is_not_thrown_away(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    started.folder.write_checkpoint(1, serialize_state(later_state(started.member())))
    (path,) = (started.folder.path / "checkpoint").iterdir()
    path.unlink()
    path.symlink_to(path.name)  # a loop, which not even root can read
    with pytest.raises(UserError, match=rf"^{path}: this checkpoint cannot be read \(.*\); make it readable"):
        started.writer.resume(started.member())
    assert os.path.lexists(path)


def test_a_process_that_has_lost_its_trial_writes_no_weights(tmp_path: Path) -> None:
    started = Started(tmp_path, "kd", epochs=1)
    started.folder.weights.write_bytes(b"of the other process")
    member = started.member()
    member.history.append(dict(ROW))

    def take_over(kind: str, **fields: Any) -> None:
        if kind == "epoch":
            foreign(started.folder.path, number=2)

    started.writer._send_event = take_over
    with pytest.raises(LostLease):
        started.writer.write_epoch(member)
    assert started.folder.weights.read_bytes() == b"of the other process"


def test_corrupt_files_whose_names_are_no_text(tmp_path: Path) -> None:
    started = Started(tmp_path, "kd", epochs=1)
    member = started.member()
    member.history.append(dict(ROW))
    member.trial = member.trial.model_copy(update={"pipeline": object()})
    member.corrupt = {os.fsdecode(b"train/caf\xe9/caf\xe9.jpg"): "cannot be decoded"}
    started.writer.write_epoch(member)
    result = started.folder.read("result.json")
    assert result is not None
    assert result["corrupt_files"] == ["train/caf?/caf?.jpg"]
