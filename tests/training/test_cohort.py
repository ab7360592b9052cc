"""A cohort's results are those of its members alone, to the last bit, whatever happens to the others."""

import copy
import itertools

import pytest
import torch

from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.methods import _registry as methods
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.teacher import Teacher
from tests.training.parts import MemoryWriter, same, splits, train, trial

CLASS = {"weights": "class", "tau": 4.0, "warmup_epochs": 2}
HYPERPARAMETERS = {
    "crd": {"negatives": 20},
    "dkl_kd": {"warmup_epochs": 2},
    "ft": {"preparation_epochs": 1},
    "ikl_kd": CLASS,
    "reviewkd": {"warmup_epochs": 2, "first_epoch": 1},
}
TAUGHT = [name for name in methods.names() if methods.describe(name).needs_teacher]

BROKEN = '''
import torch
from kd_bench.methods.base import Method
from kd_bench.types import Needs


class Broken(Method):
    """Goes wrong in a chosen step of the second epoch.

    Args:
        how: "error" or "nan".
    """

    needs_teacher = True
    family = "logits"

    def __init__(self, pair, *, how: str = "error"):
        super().__init__(pair)
        self.how = how

    def forward(self, student, teacher, batch):
        loss = torch.nn.functional.cross_entropy(student.logits, batch.labels)
        if batch.epoch == 1 and batch.step == 1:
            if self.how == "error":
                raise RuntimeError("the method's own fault")
            loss = loss * float("nan")
        return {"ce": loss}
'''

LATE = '''
import torch
from kd_bench.methods.base import Method


class Late(Method):
    """The loss of the last step is finite, and its gradient is not."""

    needs_teacher = True
    family = "logits"

    def forward(self, student, teacher, batch):
        loss = torch.nn.functional.cross_entropy(student.logits, batch.labels)
        if batch.epoch == 2 and batch.step == 4:
            loss = loss + (0 * student.logits).abs().sum().sqrt()
        return {"ce": loss}
'''


@pytest.fixture(scope="module")
def data():
    return splits()


@pytest.fixture(scope="module")
def alone(data):
    """Each method trained by itself."""
    return {name: train([of(name)], data)[0] for name in TAUGHT}


def of(name):
    """A trial of a built-in method."""
    return trial(name, hyperparameters=HYPERPARAMETERS.get(name, {}))


def test_every_method_alone_together_and_in_another_order(data, alone):
    for order in (TAUGHT, TAUGHT[::-1]):
        for name, writer in zip(order, train([of(name) for name in order], data), strict=True):
            assert writer.crash is writer.divergence is None
            assert same(writer.states, alone[name].states), name


def test_methods_do_differ(alone):
    # The test above would prove nothing if all methods gave the same weights.
    for name, other in itertools.combinations(TAUGHT, 2):
        assert not same(alone[name].states[-1]["network"], alone[other].states[-1]["network"]), (name, other)


def test_supervised_students_side_by_side(data):
    small, large = trial("none"), trial("none", model="cifar_resnet14")
    writers = train([small, large], data)
    assert same(writers[0].states, train([small], data)[0].states)
    assert same(writers[1].states, train([large], data)[0].states)


def test_same_seed_gives_the_same_initial_weights_to_every_method(data):
    members = [build_student(trial(name, taught=False), data, None, MemoryWriter()) for name in ("none", "none")]
    assert same(members[0].network.state_dict(), members[1].network.state_dict())
    other = build_student(trial("none", seed=4), data, None, MemoryWriter())
    assert not same(members[0].network.state_dict(), other.network.state_dict())


@pytest.mark.parametrize("epoch", [1, 2])
def test_resuming_is_exact(data, alone, epoch):
    states = [alone[name].states[epoch - 1] for name in TAUGHT]
    for name, writer in zip(TAUGHT, train([of(name) for name in TAUGHT], data, states=states), strict=True):
        assert same(writer.states[-1], alone[name].states[-1]), name


def test_members_of_different_progress_go_on_together(data, alone):
    # A kill between two checkpoints of one epoch leaves a cohort so.
    trials = [trial("kd"), trial("ikl_kd", hyperparameters=CLASS), trial("dkd")]
    resumed = train(trials, data, states=[alone["kd"].states[1], alone["ikl_kd"].states[0], None])
    for writer, name, epochs in zip(resumed, ("kd", "ikl_kd", "dkd"), (1, 2, 3), strict=True):
        assert len(writer.states) == epochs
        assert same(writer.states[-1], alone[name].states[-1])


@pytest.mark.parametrize("how", ["error", "nan"])
def test_a_member_that_goes_wrong_touches_no_other(data, alone, tmp_path, how):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    name = f"{path}:Broken"
    assert methods.describe(name).needs_teacher
    broken, kd = train([trial(name, hyperparameters={"how": how}), trial("kd")], data)
    assert same(kd.states, alone["kd"].states)
    assert len(broken.states) == 1
    if how == "error":
        assert broken.crash == f"{tmp_path / 'broken.py'}, line 25: RuntimeError: the method's own fault"
    else:
        assert broken.divergence == "the loss was no longer finite in epoch 2, step 2"


def passes_of_the_teacher(monkeypatch):
    """Epoch and step of each pass of a teacher from now on."""
    passes, forward = [], Teacher.forward

    def note(self, batch, norm_mode):
        passes.append((batch.epoch, batch.step))
        return forward(self, batch, norm_mode)

    monkeypatch.setattr(Teacher, "forward", note)
    return passes


def test_the_epoch_in_which_the_last_member_stops_ends_there(data, tmp_path, monkeypatch):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    passes, loader = passes_of_the_teacher(monkeypatch), InMemoryLoader.__iter__
    batches = []

    def note(self):
        for batch in loader(self):
            batches.append(len(batch.labels))
            yield batch

    monkeypatch.setattr(InMemoryLoader, "__iter__", note)
    (broken,) = train([trial(f"{path}:Broken")], data)
    assert broken.crash is not None and len(broken.states) == 1
    assert passes == [(0, step) for step in range(5)] + [(1, 0), (1, 1)]
    assert batches.count(len(data.test_labels)) == 1


def test_the_teacher_does_not_run_until_a_member_joins(data, tmp_path, monkeypatch):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN.replace("batch.epoch == 1", "batch.epoch == 0"))
    (whole,) = train([trial("kd")], data)
    passes = passes_of_the_teacher(monkeypatch)
    _, kd = train([trial(f"{path}:Broken"), trial("kd")], data, states=[None, whole.states[1]])
    assert same(kd.states[-1], whole.states[-1])
    assert passes == [(0, 0), (0, 1)] + [(2, step) for step in range(5)]


def test_divergence_by_a_learning_rate_far_too_high(data, alone):
    diverged, kd = train([trial("kd", optimizer={"name": "sgd", "lr": 1e9}), trial("kd")], data)
    assert diverged.divergence is not None
    assert "no longer finite in epoch 1" in diverged.divergence
    assert same(kd.states, alone["kd"].states)


def test_divergence_in_the_last_step(data, alone, tmp_path):
    """No later step shows it: the loss of the last step is that of the weights before it."""
    path = tmp_path / "late.py"
    path.write_text(LATE)
    diverged, kd = train([trial(f"{path}:Late"), trial("kd")], data)
    assert diverged.divergence == "the loss of the test images was no longer finite after epoch 3, the last one"
    assert len(diverged.states) == 2
    assert same(kd.states, alone["kd"].states)


def test_clipping_concerns_one_student_only(data, alone):
    clipped, kd = train([trial("kd", clip_norm=0.01), trial("kd")], data)
    assert same(kd.states, alone["kd"].states)
    assert not same(clipped.states[-1]["network"], alone["kd"].states[-1]["network"])


def test_training_learns_and_reports(data):
    writer = train([trial("none", epochs=12)], data)[0]
    history = writer.states[-1]["history"]
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["top1"] > 60
    assert history[0]["top5"] == 100.0
    assert all(row["seconds"] >= row["own_seconds"] > 0 for row in history)


def test_the_teacher_is_never_changed(data):
    from kd_bench.training.build import build_network
    from kd_bench.training.cohort import CohortModule
    from kd_bench.training.fit import fit
    from kd_bench.training.loaders import loaders
    from tests.training.parts import CPU

    kd = trial("kd")
    teacher = build_network(kd.teacher, data)[0].eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    # OFD's teacher normalises by the batch
    members = [build_student(each, data, teacher, MemoryWriter()) for each in (kd, trial("ofd"))]
    fit(CohortModule(members, teacher), *loaders(kd, data, CPU), CPU)
    assert same(before, dict(teacher.state_dict()))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_statistics_that_ofds_teacher_goes_by(data, statistics):
    from kd_bench.training.build import build_network
    from kd_bench.training.cohort import CohortModule
    from kd_bench.training.loaders import loaders
    from tests.training.parts import CPU

    ofd = trial("ofd", hyperparameters={"teacher_batch_norm": statistics})
    teacher = build_network(ofd.teacher, data)[0].eval()
    members = [build_student(each, data, teacher, MemoryWriter()) for each in (ofd, trial("kd"))]
    batch = next(iter(loaders(ofd, data, CPU)[0]))
    given = CohortModule(members, teacher).teacher_outputs(batch)
    assert given.keys() == {statistics, "running"}
    reference = copy.deepcopy(teacher).train(statistics == "batch")
    expected = reference.forward_stages(batch.images, preacts=True).preacts
    for mine, other in zip(given[statistics].preacts, expected, strict=True):
        if statistics == "batch":
            assert torch.equal(mine, other)
        else:  # its batch norms are folded into its convolutions
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given["running"].logits, teacher(batch.images), rtol=1e-5, atol=1e-5)
    assert not any(module.training for module in teacher.modules())


def test_members_must_share_their_stream(data):
    members = [build_student(trial("none", seed=seed), data, None, MemoryWriter()) for seed in (1, 2)]
    with pytest.raises(ValueError, match="share the stream"):
        CohortModule(members)


def test_evaluation_is_exact(data):
    member_trial = trial("none", epochs=1)
    writer = train([member_trial], data)[0]
    member = build_student(member_trial, data, None, MemoryWriter())
    member.restore(writer.states[-1])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    member.network.eval()
    with torch.no_grad():
        logits = member.network((data.test_images / 255 - mean) / std)
    expected = 100 * (logits.argmax(1) == data.test_labels).double().mean().item()
    assert writer.states[-1]["history"][-1]["top1"] == pytest.approx(expected)
