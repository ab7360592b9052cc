"""The epochs of a preparation: what they train, what they leave alone, and how they are resumed and shared."""

from __future__ import annotations

import copy
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.testing import SmallRun
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.student import StudentModule
from kd_bench.utils.errors import UserError
from tests.training.parts import CPU, PREPARATION_EPOCHS, MemoryWriter, same, splits, train, trial
from tests.training.tape import TapeRecorder
from tests.training.test_recorded import run, without

NAMES = ("ab", "fsp", "ft")
EPOCHS = 2

#: The parameters and buffers that a preparation changes begin with these; nothing else changes.
TRAINED = {"ab": ("network.conv1", "network.bn1", "network.layer"), "ft": ("method.paraphraser", "method.decoder")}
TRAINED["fsp"] = TRAINED["ab"]

PLUGIN = '''
from kd_bench.methods.base import Method


class Own(Method):
    """The logits first, and then the labels."""

    def __init__(self, pair, *, preparation_epochs: int = 2, preparation_lr: float = 0.02, mistake: str = ""):
        super().__init__(pair)
        self.mistake = mistake

    def prepare(self, student, teacher, batch):
        if self.mistake == "raises":
            raise RuntimeError("of the method's own")
        if self.mistake == "returns":
            return {"distance": None}
        return {"distance": (student.logits - teacher.logits).square().mean()}

    def forward(self, student, teacher, batch):
        assert batch.epoch >= 0
        return {"ce": self.label_loss(student, batch)}
'''


@pytest.fixture(autouse=True)
def _a_checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return splits()


def small(name: str, **changes: Any) -> Trial:
    return trial(name, **({"epochs": EPOCHS} | changes))


@pytest.fixture(scope="module")
def alone(data: ArrayDataset) -> dict[str, list[dict[str, Any]]]:
    """The states after each epoch of each method, trained by itself."""
    return {name: train([small(name)], data)[0].states for name in (*NAMES, "kd")}


def initial_state(name: str, data: ArrayDataset) -> dict[str, Any]:
    member_trial = small(name)
    assert isinstance(member_trial.teacher, Trial)
    return build_student(
        member_trial, data, build_network(member_trial.teacher, data)[0].eval(), MemoryWriter()
    ).state()


def flat(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the student and the method of a state by name."""
    return {f"{part}.{name}": value for part in ("network", "method") for name, value in state[part].items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_preparation_trains_what_its_terms_depend_on_and_nothing_else(name: str, data, alone) -> None:
    before, after = flat(initial_state(name, data)), flat(alone[name][PREPARATION_EPOCHS - 1])
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {key for key in before if key.startswith(TRAINED[name])}
    assert not any(key.startswith("network.fc") for key in changed)


def test_ft_keeps_the_student_and_then_the_paraphraser(data, alone) -> None:
    prepared, last = flat(alone["ft"][PREPARATION_EPOCHS - 1]), flat(alone["ft"][-1])
    initial = flat(initial_state("ft", data))
    assert any(key.endswith("running_mean") for key in initial)
    for key, value in initial.items():
        frozen = key.startswith(TRAINED["ft"])
        assert torch.equal(prepared[key], value) != frozen, key
        assert torch.equal(last[key], prepared[key]) == frozen, key


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_afterwards_the_student_is_trained_as_if_it_began_there(name: str, data, alone) -> None:
    """By the labels alone, without momentum from before, in the same batches and with the same learning rates."""
    supervised = small("none")
    member = build_student(supervised, data, None, MemoryWriter())
    member.network.load_state_dict(alone[name][PREPARATION_EPOCHS - 1]["network"])
    fit(CohortModule([member]), *loaders(supervised, data, CPU), CPU)
    assert same(dict(member.network.state_dict()), dict(alone[name][-1]["network"]))
    columns = ("epoch", "lr", "top1", "train_loss")
    for row, of_method in zip(member.history, alone[name][-1]["history"], strict=True):
        assert [row[column] for column in columns] == [of_method[column] for column in columns]


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_the_optimisers_state(name: str, alone) -> None:
    states = alone[name]
    assert len(states) == PREPARATION_EPOCHS + EPOCHS
    rows = states[-1]["preparation"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {row["lr"] for row in rows} == {0.01 if name == "ft" else 0.05}
    (term,) = {key for key in rows[0] if key.startswith("train_")} - {"train_loss"}
    assert all(row[term] == row["train_loss"] for row in rows)
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert all(row["seconds"] >= row["own_seconds"] > 0 and row["members"] == 1 for row in rows)
    assert [row["epoch"] for row in states[-1]["history"]] == [1, 2]
    sizes = [len(state["optimizer"]["state"]) for state in states]
    assert sizes[0] and sizes[-1]
    assert sizes[PREPARATION_EPOCHS - 1] == 0  # it is fresh in epoch 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_the_students_epochs_begin_with_an_optimiser_that_has_made_no_step(optimizer: str, data) -> None:
    member_trial = small("ft", optimizer={"name": optimizer, "lr": 0.01})
    assert isinstance(member_trial.teacher, Trial)
    member = build_student(member_trial, data, build_network(member_trial.teacher, data)[0].eval(), MemoryWriter())
    fresh = member.optimizer.state_dict()
    for epoch in range(-PREPARATION_EPOCHS, 0):
        for parameter in member.method.parameters():
            parameter.grad = torch.ones_like(parameter)
        member.optimizer.step()
        member.end_epoch(epoch, own_seconds=0.0, shared_seconds=0.0, members=1)
    assert member.preparation.is_over
    assert member.optimizer.state_dict() == fresh


def test_without_its_own_learning_rate_a_preparation_has_the_trials(data) -> None:
    (writer,) = train([small("ft", epochs=1, hyperparameters={"preparation_lr": None, "preparation_epochs": 1})], data)
    assert [row["lr"] for row in writer.states[-1]["preparation"]] == [0.05]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epoch", range(1, PREPARATION_EPOCHS + EPOCHS))
def test_resuming_after_any_epoch_is_exact(name: str, epoch: int, data, alone) -> None:
    (writer,) = train([small(name)], data, states=[alone[name][epoch - 1]])
    assert len(writer.states) == PREPARATION_EPOCHS + EPOCHS - epoch
    assert same(writer.states[-1], alone[name][-1])


class Keeping(MemoryWriter):
    """Keeps the states within epochs, by the epoch's number and the step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, int], bytes] = {}

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        (self.kept[member.next_epoch, step],) = states


def cohort(names: tuple[str, ...], data: ArrayDataset, writers: list[Keeping]) -> CohortModule:
    trials = [small(name) for name in names]
    taught = trials[0].teacher
    assert isinstance(taught, Trial)
    teacher = build_network(taught, data)[0].eval()
    members = [
        build_student(member_trial, data, teacher, writer) for member_trial, writer in zip(trials, writers, strict=True)
    ]
    return CohortModule(members, teacher)


def test_resuming_within_an_epoch_of_the_preparation_is_exact(data, alone) -> None:
    writers = [Keeping() for _ in NAMES]
    whole = cohort(NAMES, data, writers)
    batches = loaders(whole.members[0].trial, data, CPU)
    fit(whole, *batches, CPU, [MidEpochCheckpoint(seconds=0.0)])
    steps = len(batches[0])
    assert set(writers[0].kept) == {(epoch, step) for epoch in range(-2, 2) for step in range(1, steps + 1)}
    for epoch_and_step in ((-2, 3), (-1, 1), (-1, steps), (0, 2)):
        again = [Keeping() for _ in NAMES]
        resumed = cohort(NAMES, data, again)
        for member, writer in zip(resumed.members, writers, strict=True):
            member.restore_mid_epoch(torch.load(io.BytesIO(writer.kept[epoch_and_step]), weights_only=True))
        assert resumed.teacher is not None
        resumed = CohortModule(resumed.members, resumed.teacher.network)
        assert (resumed.start_epoch, resumed.first_step) == epoch_and_step
        fit(resumed, *loaders(resumed.members[0].trial, data, CPU), CPU)
        for name, writer in zip(NAMES, again, strict=True):
            assert same(writer.states[-1], alone[name][-1]), (epoch_and_step, name)


@pytest.mark.parametrize("order", [("kd", "ab", "ft"), ("ft", "fsp", "kd")])
def test_company_changes_nothing(order: tuple[str, ...], data, alone) -> None:
    """Methods without a preparation wait for the others, and then begin as alone."""
    for name, writer in zip(order, train([small(name) for name in order], data), strict=True):
        assert writer.crash is writer.divergence is None
        assert len(writer.states) == EPOCHS + (PREPARATION_EPOCHS if name in NAMES else 0)
        assert same(writer.states, alone[name]), name
        if name == "kd":
            assert "preparation" not in writer.states[-1]


def test_preparations_of_other_lengths_and_progress_go_on_together(data, alone) -> None:
    longer = small("ft", hyperparameters={"preparation_epochs": 3})
    long_alone = train([longer], data)[0].states
    trials = [small("kd"), small("ab"), longer]
    for writer, states in zip(train(trials, data), (alone["kd"], alone["ab"], long_alone), strict=True):
        assert same(writer.states, states)
    resumed = train(trials, data, states=[None, alone["ab"][0], long_alone[2]])
    for writer, states in zip(resumed, (alone["kd"], alone["ab"], long_alone), strict=True):
        assert same(writer.states[-1], states[-1])


def test_the_teacher_runs_in_the_epochs_in_which_it_is_read(data) -> None:
    passes: Counter[tuple[str, int]] = Counter()
    for name in NAMES:
        whole = cohort((name,), data, [Keeping()])
        assert whole.teacher is not None
        original = whole.teacher._pass

        def noted(mode: Any, images: Tensor, needs: Any, name=name, whole=whole, original=original) -> Any:
            passes[name, whole.epoch] += 1
            return original(mode, images, needs)

        whole.teacher._pass = noted  # type: ignore[method-assign]
        fit(whole, *loaders(whole.members[0].trial, data, CPU), CPU)
    epochs = {"ab": (-2, -1), "fsp": (-2, -1), "ft": (-2, -1, 0, 1)}
    assert passes == {(name, epoch): 5 for name in NAMES for epoch in epochs[name]}


def test_recorded_steps_have_the_same_bits(data) -> None:
    trials = [small(name) for name in ("kd", *NAMES)]
    recorder = TapeRecorder()
    writers, _ = run(trials, recorder, data)
    for writer, eager in zip(writers, without(trials, data), strict=True):
        assert (writer.notes, writer.crash, writer.divergence) == ([], None, None)
        assert same(writer.states, eager.states)
    assert recorder.replays > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"micro_batch": 8},
        {"optimizer": {"name": "adamw", "lr": 0.01}},
        {"optimizer": {"name": "lamb", "lr": 0.01, "weight_decay": 0.02}},
        {"optimizer": {"name": "dot", "lr": 0.05}},
        {"precision": "bfloat16"},
        {"augment": {"crop": 2, "flip": True, "mixup": 0.4}, "clip_norm": 1.0},
    ],
    ids=",".join,
)
def test_settings(changes: dict[str, Any], data) -> None:
    (writer,) = train([small("ft", epochs=1, **changes)], data)
    assert writer.crash is writer.divergence is None
    (resumed,) = train([small("ft", epochs=1, **changes)], data, states=[writer.states[0]])
    assert same(resumed.states[-1], writer.states[-1])
    prepared, last = (flat(writer.states[epoch]) for epoch in (PREPARATION_EPOCHS - 1, -1))
    for key, value in prepared.items():
        assert torch.equal(last[key], value) == key.startswith(TRAINED["ft"]), key
    if "ema" in changes:  # which begins with the student's own first step
        assert [int(state["average"]["n_averaged"]) for state in writer.states] == [0, 0, 5]


def test_a_loss_that_is_not_finite(data) -> None:
    trials = [small("ab", optimizer={"name": "sgd", "lr": 1e9}), small("kd")]
    diverged, kd = train(trials, data)
    assert diverged.states == []
    assert diverged.divergence is not None
    assert diverged.divergence.startswith("the loss was no longer finite in epoch 1 of its preparation, step ")
    assert len(kd.states) == EPOCHS


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(PLUGIN)
    return f"{tmp_path / 'own.py'}:Own"


def test_a_method_of_ones_own(plugin: str) -> None:
    small_run = SmallRun(plugin, epochs=2)
    small_run.check_gradients()
    small_run.check_learning()
    small_run.check_resuming()
    small_run.check_company()
    assert [row["lr"] for row in small_run.states[-1]["preparation"]] == [0.02, 0.02]
    assert len(small_run.states) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_method_passes_the_checks_of_ones_own(name: str) -> None:
    small_run = SmallRun(name, epochs=1, hyperparameters={"preparation_epochs": 1})
    small_run.check_gradients()


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("raises", "own.py, line 14: RuntimeError: of the method's own"),
        ("returns", "own.py, line 12: Own.prepare returns None as term 'distance'; it should be a scalar tensor"),
    ],
)
def test_mistakes_in_a_preparation_are_told(mistake: str, sentence: str, plugin: str, data) -> None:
    wrong, kd = train([small(plugin, hyperparameters={"mistake": mistake}), small("kd")], data)
    assert wrong.crash is not None and sentence in wrong.crash
    assert wrong.states == [] and len(kd.states) == EPOCHS


def test_a_method_without_the_function_is_refused(plugin: str, data) -> None:
    Path(plugin.rpartition(":")[0]).write_text(PLUGIN.replace("def prepare", "def prepares"))
    with pytest.raises(UserError, match=r"Own has no function prepare\(self, student, teacher, batch\)"):
        train([small(plugin)], data)


def test_a_negative_number_of_epochs_is_none(plugin: str, data) -> None:
    (writer,) = train([small(plugin, hyperparameters={"preparation_epochs": -3})], data)
    assert len(writer.states) == EPOCHS
    assert "preparation" not in writer.states[-1]


def test_a_state_is_not_shared_with_the_member_that_it_is_from(alone, data) -> None:
    state = alone["ab"][0]
    before = copy.deepcopy(state)
    train([small("ab")], data, states=[state])
    assert same(state, before)
