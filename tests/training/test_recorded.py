"""Recorded steps have the results of steps that are not recorded, and what cannot be recorded is found out."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _registry as methods
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.training.recorder import Lane, choose_recorder
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch
from tests.training.parts import CPU, MemoryWriter, same, splits, trial
from tests.training.tape import TapeLane, TapeRecorder

#: kdsvd's decomposition looks whether it has converged.
NAMES = [name for name in methods.names() if methods.describe(name).family != "adversarial" and name != "kdsvd"]

#: With 72 images in batches of 16 the last batch of an epoch has 8.
DATA = splits()


@pytest.fixture(autouse=True)
def _a_checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)


class Writer(MemoryWriter):
    """Keeps notes and the last state within an epoch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.mid_epoch: bytes | None = None

    def report_note(self, member: StudentModule, text: str) -> None:
        self.notes.append(text)

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        (self.mid_epoch,) = states


def run(
    trials: list[Trial],
    recorder: TapeRecorder | None,
    data: ArrayDataset = DATA,
    restore: Callable[[StudentModule], None] = lambda _: None,
    stop_after: int | None = None,
) -> tuple[list[Writer], CohortModule]:
    """Trains a cohort with a recorder. Stops after this many blocks of steps, if asked to."""
    writers = [Writer() for _ in trials]
    taught = next((member_trial.teacher for member_trial in trials if isinstance(member_trial.teacher, Trial)), None)
    teacher = build_network(taught, data)[0].eval() if taught else None
    members = [
        build_student(member_trial, data, teacher, writer) for member_trial, writer in zip(trials, writers, strict=True)
    ]
    for member in members:
        restore(member)
    cohort = CohortModule(members, teacher, recorder=recorder)
    asked = iter(range(10**6))
    callback = MidEpochCheckpoint(1e9, lambda: stop_after is not None and next(asked) == stop_after)
    try:
        fit(cohort, *loaders(trials[0], data, CPU), CPU, [callback])
    except StopRequested:
        assert stop_after is not None
    return writers, cohort


def without(trials: list[Trial], data: ArrayDataset = DATA) -> list[Writer]:
    """Trains the same cohort without recordings."""
    return run(trials, TapeRecorder(refuses=True), data)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_recorded_and_has_the_same_bits(name: str) -> None:
    trials = [trial(name, epochs=2)]
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert (writer.notes, writer.crash, writer.divergence) == ([], None, None)
    assert same(writer.states, without(trials)[0].states)
    assert recorder.replays > 5


@pytest.mark.parametrize("name", ["none", "kd"])
def test_times_are_measured_while_nothing_else_runs(name: str) -> None:
    trials = [trial(name), trial(name, optimizer={"name": "sgd", "lr": 0.01})]
    writers, cohort = run(trials, TapeRecorder())
    assert cohort.recorded is not None
    times = cohort.recorded.times
    assert times is not None
    assert times.batch > 0
    assert list(times.teacher) == (["running"] if name == "kd" else [])
    assert (sum(times.teacher.values()) > 0) == (name == "kd")
    for writer in writers:
        row = writer.states[-1]["history"][-1]
        assert row["seconds"] - row["own_seconds"] == pytest.approx(5 * (times.batch + sum(times.teacher.values())))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adamw", "lr": 0.01}},
        {"optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True}, "clip_norm": 1.0},
        {"augment": {"crop": 2, "flip": True, "mixup": 0.4}},
        {"channels_last": True},
        {"schedule": {"name": "step", "milestones": [1, 2]}},
        {"precision": "bfloat16"},
        {"logit_settings": {"standardise": True}},
        {"logit_settings": {"standardise": True, "entropy_weights": 3.0}, "precision": "bfloat16"},
    ],
    ids=str,
)
def test_settings(changes: dict[str, Any]) -> None:
    trials = [trial("kd", **changes)]
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert writer.notes == []
    assert recorder.replays > 10
    assert same(writer.states, without(trials)[0].states)


def test_company_changes_nothing() -> None:
    trials = [trial(name) for name in ("none", "kd", "crd", "dkd")]
    writers, _ = run(trials, TapeRecorder())
    for member_trial, writer in zip(trials, writers, strict=True):
        (alone,), _ = run([member_trial], TapeRecorder())
        assert same(alone.states, writer.states)


@pytest.mark.parametrize("name", ["ikl_kd", "crd"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_training_that_was_stopped_within_an_epoch_ends_with_the_same_bits(
    name: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 4)
    data = splits(16 * 10 + 8)  # 11 steps: blocks of 4, 4 and 3
    trials = [trial(name, epochs=2), trial("kd", epochs=2)]
    whole, _ = run(trials, TapeRecorder(), data)
    stopped, _ = run(trials, TapeRecorder(), data, stop_after=blocks)
    kept = {member_trial.id: writer.mid_epoch for member_trial, writer in zip(trials, stopped, strict=True)}

    def restore(member: StudentModule) -> None:
        content = kept[member.trial.id]
        assert content is not None
        member.restore_mid_epoch(torch.load(io.BytesIO(content), weights_only=True))
        assert member.first_step == 4 * (blocks + 1)

    resumed, _ = run(trials, TapeRecorder(), data, restore)
    for writer, other in zip(whole, resumed, strict=True):
        assert same(writer.states, other.states)


PLUGIN = """
import random
import torch
from kd_bench.losses import cross_entropy
from kd_bench.methods.base import Method

SHARED = []

class Own(Method):
    def __init__(self, pair):
        super().__init__(pair)
        self.register_buffer("scale", torch.ones(()))
        self.steps = 0
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, student, teacher, batch):
        factor = 1.0
        {line}
        return {{"ce": factor * cross_entropy(student.logits, batch.labels)}}
"""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("factor = 1 + 0.01 * student.logits.mean().item()", "reads a number from the device (_local_scalar_dense)"),
        ("factor = 1 + 0.01 * student.logits[student.logits > 0].mean()", "reads a number from the device (index)"),
        ("factor = 1 + 0.01 * batch.step", "the method reads the number of the step"),
        ("factor = 1 + 0.01 * torch.rand(())", "the method draws from torch's global generators"),
        ("factor = 1 + 0.01 * random.random()", "draws from the generators of Python or NumPy"),
        ("self.steps += 1; factor = 1 + 0.01 * self.steps", "Own.steps is another object or number after every step"),
        ("self.scale = self.scale * 1.01; factor = self.scale", "Own._buffers[scale] is another object or number"),
        ("SHARED.append(1); factor = 1 + 0.01 * len(SHARED)", "a replay of its operations has another result"),
    ],
)
def test_a_method_that_cannot_be_recorded_is_found_out(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(line=line))
    trials = [trial(f"{file}:Own"), trial("kd")]
    recorder = TapeRecorder()
    (plugin, kd), _ = run(trials, recorder)
    (note,) = plugin.notes
    assert note.startswith("its steps are not recorded and take longer, because")
    assert reason in note
    assert plugin.crash is None
    assert kd.notes == []
    assert same(kd.states, run([trials[1]], TapeRecorder())[0][0].states)
    if "random.random" not in line and "SHARED" not in line:  # these are not reproducible without recordings, either
        assert same(plugin.states, without([trials[0]])[0].states)


@pytest.mark.parametrize(
    ("line", "recordings"),
    [
        ("factor = 1 + 0.1 * batch.epoch", 4),
        ("factor = batch.epoch_value(lambda epoch: 1 + 0.1 * epoch)", 4),
        ("factor = batch.epoch_value(lambda epoch: 1 + 0.1 * min(epoch, 1))", 2),
        ("factor = 1 + 0.1 * torch.rand((), generator=batch.generator)", 1),
        ("self.scale.mul_(1.01); factor = self.scale.clone()", 1),
        ("factor = len(batch.rows(slice(2)).labels)", 1),
    ],
)
def test_what_a_method_may_read_and_still_be_recorded(tmp_path: Path, line: str, recordings: int) -> None:
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(line=line))
    trials = [trial(f"{file}:Own", epochs=4)]
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert writer.notes == []
    assert recorder.recordings == recordings + 2  # of the teacher's pass and of the evaluation
    assert same(writer.states, without(trials)[0].states)


def test_a_network_that_draws_is_found_out() -> None:
    trials = [trial("kd", model="resnet18", drop_path=0.2), trial("kd")]
    (drawing, kd), _ = run(trials, TapeRecorder(), splits(48, 16))
    assert "the network draws from torch's global generators" in drawing.notes[0]
    assert kd.notes == []


@pytest.mark.parametrize(
    ("trials", "operator"),
    [([trial("kd", optimizer={"name": "lamb", "lr": 0.01})], ""), ([trial("kdsvd")], "(_linalg_eigh)")],
    ids=["lamb", "kdsvd"],
)
def test_what_reads_a_number_is_not_recorded(trials: list[Trial], operator: str) -> None:
    (writer,), _ = run(trials, TapeRecorder())
    assert "reads a number from the device" in writer.notes[0]
    assert operator in writer.notes[0]
    assert same(writer.states, without(trials)[0].states)


def test_a_member_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(line="if self.training and batch.epoch == 1: raise ValueError('no more')"))
    trials = [trial(f"{file}:Own"), trial("kd")]
    (plugin, kd), _ = run(trials, TapeRecorder())
    assert plugin.crash == f"{file}, line 18: ValueError: no more"
    assert len(plugin.states) == 1
    assert same(kd.states, run([trials[1]], TapeRecorder())[0][0].states)


def test_members_run_one_after_another_if_memory_is_short() -> None:
    trials = [trial(name) for name in ("kd", "dkd", "none")]
    whole, _ = run(trials, TapeRecorder())
    recorder = TapeRecorder(memory=3)
    writers, _ = run(trials, recorder)
    assert recorder.lane_counts == [(4, False), (4, True)]
    for writer, other in zip(whole, writers, strict=True):
        assert same(writer.states, other.states)


def test_what_did_not_fit_is_freed_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []
    record = TapeLane.record

    def fail(function: Callable[[], None]) -> None:
        activations = torch.zeros(3)
        made.append(weakref.ref(activations))
        function()
        raise torch.OutOfMemoryError("CUDA out of memory (in a test)")

    def record_in_one_queue(self: TapeLane, function: Any, generators: Any) -> Any:
        if not self.shares_memory:
            return record(self, lambda: fail(function), generators)
        held.append(made[0]() is not None)
        return record(self, function, generators)

    monkeypatch.setattr(TapeLane, "record", record_in_one_queue)
    (writer,), _ = run([trial("kd")], TapeRecorder())
    assert held
    assert not any(held)
    assert writer.notes == []


def test_a_smaller_batch_is_run_in_the_lane_of_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, sizes = TapeRecorder(), []
    step = StudentModule.step

    def in_lane(self: StudentModule, teacher: Any, part: MicroBatch, backward: Any) -> None:
        sizes.append((len(part.batch.labels), [lane.inside for lane in recorder.made]))
        step(self, teacher, part, backward)

    monkeypatch.setattr(StudentModule, "step", in_lane)
    run([trial("kd", epochs=1), trial("dkd", epochs=1)], recorder)
    assert sizes == [(8, [False, True, False]), (8, [False, False, True])]


def test_memory_that_does_not_suffice_for_one_member_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = TapeRecorder(memory=0)
    make = TapeRecorder.lanes
    monkeypatch.setattr(TapeRecorder, "lanes", lambda self, count, one_queue: make(self, count, False))
    with pytest.raises(MemoryError):
        run([trial("kd")], recorder)


def test_a_replay_with_another_result_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    record = TapeLane.record

    def record_wrongly(self: Lane, function: Any, generators: Any) -> Any:
        tensors: list[torch.Tensor] = []
        replay = record(self, function, generators)  # type: ignore[arg-type]
        (training_member,) = [member for member in members if member.network.training]
        tensors.append(next(training_member.network.parameters()))

        def wrong() -> None:
            replay()
            with torch.no_grad():
                tensors[0].add_(1e-3)

        return wrong

    members: list[StudentModule] = []
    monkeypatch.setattr(TapeLane, "record", record_wrongly)
    recorder = TapeRecorder()
    (writer,), _ = run([trial("none")], recorder, splits(72, 16), members.append)
    assert "a replay of its operations has another result" in writer.notes[0]
    assert same(writer.states, without([trial("none")], splits(72, 16))[0].states)


def test_only_plain_steps_on_a_gpu_are_recorded() -> None:
    gpu, plain = torch.device("cuda"), trial("kd")
    assert choose_recorder(CPU, plain) is None
    assert choose_recorder(gpu, plain) is not None
    assert choose_recorder(gpu, trial("kd", micro_batch=8)) is None


def test_the_tape_behaves_as_a_graph() -> None:
    lane = TapeRecorder().lanes(1, one_queue=False)[0]
    total, factor, buffer = torch.zeros(2), 2.0, torch.tensor([1.0, 2.0])

    def add() -> None:
        total.add_(buffer * factor)

    with lane.running():
        add()
        total.zero_()
    with lane.running():
        replay = lane.record(add, [])
        assert total.tolist() == [0, 0]
        factor = 5.0
        buffer.copy_(torch.tensor([3.0, 4.0]))
        replay()
        replay()
        assert total.tolist() == [12, 16]
        with pytest.raises(RuntimeError, match="not permitted"):
            lane.record(lambda: total.add_(total.sum().item()) and None, [])
        with pytest.raises(RuntimeError, match="not registered"):
            lane.record(lambda: total.add_(torch.rand(2)) and None, [])
        assert total.tolist() == [12, 16]


def test_a_batch_is_what_methods_are_documented_to_get() -> None:
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2), 3, 5)
    assert batch.epoch_value(lambda epoch: epoch / 10) == 0.3
    assert batch.rows(slice(1)).generator is None
