"""Trainings with short epochs write a checkpoint once a minute, and resume from the last state, wherever it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from kd_bench.config.trial import Trial
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.result_writer import deserialize_state, serialize_state
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from kd_bench.trials.result_writer import TrialResultWriter
from tests.training.parts import CPU, splits, trial
from tests.training.tape import TapeRecorder

DATA = splits(16 * 6)


def train(
    trials: list[Trial], root: Path, stop_after: int | None = None, events: list[str] | None = None
) -> list[TrialFolder]:
    """Trains as a worker does, with recorded steps, in folders below ``root``. Stops after this many steps.

    The kinds of the events that it sends are appended to ``events``.
    """
    sent = [] if events is None else events
    assert isinstance(trials[0].teacher, Trial)
    teacher = build_network(trials[0].teacher, DATA)[0].eval()
    folders, members = [], []
    for member_trial in trials:
        folder = TrialFolder(root / member_trial.id)
        folder.create(member_trial)
        lease = acquire_lease(folder.path, LeaseMonitor())
        assert lease is not None
        writer = TrialResultWriter(folder, lease, lambda kind, **_: sent.append(kind), None, len(DATA.train_labels))
        member = build_student(member_trial, DATA, teacher, writer)
        writer.resume(member)
        mid_epoch = writer.read_mid_epoch(member.epochs_done, 1)
        if mid_epoch is not None:
            member.restore_mid_epoch(deserialize_state(mid_epoch[2][0]))
        folders.append(folder)
        members.append(member)
    steps = iter(range(10**6))
    callback = MidEpochCheckpoint(1e9, lambda: stop_after is not None and next(steps) == stop_after)
    cohort = CohortModule(members, teacher, recorder=TapeRecorder())
    try:
        fit(cohort, *loaders(trials[0], DATA, CPU), CPU, [callback])
    except StopRequested:
        for member in members:
            assert isinstance(member.writer, TrialResultWriter)
            member.writer._lease.release(finished=False)
    return folders


@pytest.fixture(autouse=True)
def _one_step_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 1)


def test_a_checkpoint_is_written_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial("kd", epochs=4)]
    (folder,) = train(trials, tmp_path / "stopped", stop_after=20)
    assert folder.epochs_done() == 0
    assert [path.name.split("-")[1:3] for path in (folder.path / "checkpoint").iterdir()] == [["000003", "000000003"]]
    assert len((folder.path / "metrics.csv").read_text().splitlines()) == 1 + 3
    ((_, content),) = folder.read_mid_epoch(0)
    (state,) = deserialize_state(content)["states"]
    assert len(content) < 1.1 * len(state)
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)
    (folder,) = train(trials, tmp_path / "often", stop_after=20)
    assert folder.epochs_done() == 3


def test_a_training_resumes_from_a_state_within_a_later_epoch(tmp_path: Path) -> None:
    trials = [trial("kd", epochs=4), trial("dkd", epochs=4)]
    whole = train(trials, tmp_path / "whole")
    train(trials, tmp_path / "stopped", stop_after=20)
    resumed = train(trials, tmp_path / "stopped")
    for folder, other in zip(whole, resumed, strict=True):
        assert folder.weights.read_bytes() == other.weights.read_bytes()


def test_a_training_that_was_killed_begins_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    trials = [trial("kd", epochs=4)]
    (whole,) = train(trials, tmp_path / "whole")
    (folder,) = train(trials, tmp_path / "killed", stop_after=20)
    for path in (folder.path / "checkpoint").iterdir():
        path.unlink()
    (resumed,) = train(trials, tmp_path / "killed")
    assert whole.weights.read_bytes() == resumed.weights.read_bytes()
    assert len((folder.path / "metrics.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.parametrize("within", [True, False])
def test_a_training_goes_on_on_another_device(within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files say that their tensors were on a GPU, which this machine does not have."""
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)
    trials = [trial("kd", epochs=4, ema=0.9, optimizer={"name": "adamw", "lr": 0.01})]
    (whole,) = train(trials, tmp_path / "whole")
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr("torch.serialization.location_tag", lambda storage: "cuda:1")
        (folder,) = train(trials, tmp_path / "stopped", stop_after=20)
        content = serialize_state({"weight": torch.ones(2)})
    with pytest.raises(RuntimeError, match="CUDA device"):
        torch.load(io.BytesIO(content), weights_only=True)
    assert deserialize_state(content)["weight"].tolist() == [1, 1]
    if not within:
        for path in (folder.path / "checkpoint").glob("within-*"):
            path.unlink()
    events: list[str] = []
    (resumed,) = train(trials, tmp_path / "stopped", events=events)
    assert events == ["epoch", "finished"]  # the fourth epoch alone, and no note about a damaged checkpoint
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
