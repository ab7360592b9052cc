"""DOT: two gradients of one forward pass, each with a momentum of its own."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from kd_bench.config.load import read_recipe
from kd_bench.config.optimizer import DOT as Settings
from kd_bench.estimate.step_cost import count_cohort
from kd_bench.models.outputs import observe
from kd_bench.plan import plan
from kd_bench.testing import SmallRun
from kd_bench.training.dot import DOT
from kd_bench.training.gradients import add_gradients, all_gradients, finish_gradients
from kd_bench.training.optimizers import build_optimizer, set_learning_rate
from kd_bench.training.student import StudentModule
from kd_bench.utils.errors import UserError
from tests.training.parts import same, splits, train, trial
from tests.training.steps import PLAIN, built, close, step_as_one_of_two, stepped
from tests.training.tape import TapeRecorder
from tests.training.test_recorded import run, without

OPTIMIZER = {"name": "dot", "lr": 0.03}

RECIPE = {
    "name": "r",
    "dataset": "digits",
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}, "kd_dot": {"method": "kd", "training": {"optimizer": OPTIMIZER}}},
    "trials": 1,
}


@pytest.fixture(autouse=True)
def _a_checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def data():
    return splits(train=32, test=16)


def losses(weights: dict[str, Tensor], step: int, late: bool) -> tuple[Tensor, Tensor]:
    """Returns the losses of a task and of a distillation. ``late`` adds a weight to the distillation after 2 steps."""
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3) * (1 + 0.1 * step)
    task = (x @ weights["both"]).square().sum() + (weights["task"] - 1).pow(4).sum()
    distillation = ((weights["both"] - 0.5) * weights["distillation"]).square().sum() + weights["distillation"].sum()
    return task, distillation + (weights["task"].exp().sum() if late and step >= 2 else 0)


def initial_weights() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(3, generator=draws, dtype=torch.float64)
        for name in ("both", "task", "distillation", "neither")
    }


def by_formula(rates: list[float], momentum: float, delta: float, decay: float, late: bool) -> list[dict[str, Tensor]]:
    """Returns the weights after each step, weight by weight and step by step as the paper writes it."""
    weights, history = initial_weights(), []
    task_momentum: dict[str, Tensor] = {}
    distillation_momentum: dict[str, Tensor] = {}
    for step, rate in enumerate(rates):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        gradients = [
            dict(zip(leaves, torch.autograd.grad(loss, leaves.values(), allow_unused=True), strict=True))
            for loss in losses(leaves, step, late)
        ]
        for name, weight in list(weights.items()):
            task, distillation = (loss_gradients[name] for loss_gradients in gradients)
            change = torch.zeros_like(weight)
            if task is not None:
                task = task + decay * weight
                factor = momentum if distillation is None else momentum - delta
                old = task_momentum.get(name)
                task_momentum[name] = task if old is None else factor * old + task
                change = change + task_momentum[name]
            if distillation is not None:
                if task is None:
                    distillation = distillation + decay * weight
                factor = momentum if task is None else momentum + delta
                old = distillation_momentum.get(name)
                distillation_momentum[name] = distillation if old is None else factor * old + distillation
                change = change + distillation_momentum[name]
            weights[name] = weight - rate * change
        history.append(dict(weights))
    return history


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("momentum", "delta"), [(0.9, 0.075), (0.9, 0.0), (0.4, 0.4)])
@pytest.mark.parametrize("kernel", [{"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}], ids=str)
def test_steps_follow_the_formula(kernel: dict[str, bool], momentum: float, delta: float, late: bool) -> None:
    rates = [0.02, 0.02, 0.01, 0.01, 0.002]
    parameters = {name: nn.Parameter(value) for name, value in initial_weights().items()}
    optimizer = DOT(parameters.values(), rates[0], momentum, delta, 0.1, **kernel)
    for step, expected in enumerate(by_formula(rates, momentum, delta, 0.1, late)):
        set_learning_rate(optimizer, rates[step])
        task, distillation = losses(dict(parameters), step, late)
        add_gradients(
            optimizer, task + distillation, {"ce": task, "other": distillation}, nn.Identity(), 1.0, Tensor.backward
        )
        optimizer.step()
        optimizer.zero_grad()
        for name, value in expected.items():
            torch.testing.assert_close(parameters[name].detach(), value, rtol=1e-12, atol=1e-12)
    assert torch.equal(parameters["neither"], initial_weights()["neither"])
    assert optimizer.state[parameters["distillation"]].keys() == {"distillation_momentum"}


def test_one_loss_alone_is_sgd() -> None:
    """As in the preparation of a method with two stages, whose loss has no parts."""
    weights = [nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2)]
    optimizers = [
        DOT([weights[0]], 0.1, 0.9, 0.05, 5e-4, fused=True),
        torch.optim.SGD([weights[1]], 0.1, 0.9, weight_decay=5e-4, fused=True),
    ]
    for _ in range(4):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.cos().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(*weights)


def test_what_the_class_refuses() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    for momentum, delta in ((0.9, 0.1), (0.1, 0.2), (0.0, 0.0), (0.9, -0.1)):
        with pytest.raises(ValueError, match="DOT needs momenta from 0 to below 1"):
            DOT(weights, 0.1, momentum, delta, 0.0)
    with pytest.raises(ValueError, match="no steps with a closure"):
        DOT(weights, 0.1, 0.9, 0.05, 0.0).step(lambda: 0.0)


def test_both_gradients_are_clipped_by_one_factor() -> None:
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    for limit, factor in ((100.0, 1.0), (2.6, 0.2)):
        optimizer = DOT(weights, 0.1, 0.9, 0.05, 0.0)
        # The gradient of the loss is (3, 4, 12, 0), of norm 13.
        task = weights[0][0] * 5 + weights[0][1] * 3 + weights[2][0] * 0
        distillation = weights[0][0] * -2 + weights[0][1] + weights[1][0] * 12
        add_gradients(optimizer, task, {"ce": task, "other": distillation}, nn.Identity(), 1.0, Tensor.backward)
        finish_gradients(optimizer, weights, limit)
        assert flat(optimizer) == pytest.approx([5 * factor, 3 * factor, 0])
        with optimizer.distillation_gradients():
            assert flat(optimizer) == pytest.approx([-2 * factor, factor, 12 * factor])
        assert len(all_gradients(optimizer)) == 4
        optimizer.zero_grad()
        assert all_gradients(optimizer) == []


def flat(optimizer: DOT) -> list[float]:
    weights = optimizer.param_groups[0]["params"]
    return [value for weight in weights if weight.grad is not None for value in weight.grad.tolist()]


@pytest.mark.parametrize(("method", "model"), [("kd", PLAIN), ("fitnet", "cifar_resnet8"), ("vid", "cifar_resnet8")])
def test_a_student_trains_by_the_formula(data, method: str, model: str) -> None:
    member, teacher, batches = built(data, method, model=model, optimizer=OPTIMIZER, clip_norm=None)
    reference = copy.deepcopy(nn.ModuleList([member.network, member.method])).train()
    weights = dict(reference.named_parameters())
    momenta: list[dict[str, Tensor]] = [{}, {}]
    alone = set()
    for batch in batches[:3]:
        with torch.no_grad():
            taught = observe(teacher, batch.images, member.method.needs.teacher)
        terms = reference[1](observe(reference[0], batch.images, member.method.needs.student), taught, batch)
        task = terms.pop("ce")
        gradients = [
            torch.autograd.grad(loss, weights.values(), allow_unused=True, retain_graph=True)
            for loss in (task, sum(terms.values()))
        ]
        for name, pair in zip(weights, zip(*gradients, strict=True), strict=True):
            decay = 5e-4 * weights[name].detach()
            if None in pair:
                alone.add(name)
                factors, decays = (0.9, 0.9), (decay, decay)
            else:
                factors, decays = (0.825, 0.975), (decay, 0 * decay)
            for index, gradient in enumerate(pair):
                if gradient is not None:
                    old = momenta[index].get(name, torch.zeros_like(gradient))
                    momenta[index][name] = factors[index] * old + gradient + decays[index]
        with torch.no_grad():
            for name, weight in weights.items():
                weight.sub_(0.03 * sum(buffer[name] for buffer in momenta if name in buffer))
    stepped(member, teacher, batches)
    assert bool(alone) == (method != "kd")  # the connectors of the others, and the classifier
    trained = nn.ModuleList([member.network, member.method])
    close(dict(trained.named_parameters()), weights)


@pytest.mark.parametrize("micro_batch", [2, 6])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_micro_batches_add_up(data, micro_batch: int, clip_norm: float | None) -> None:
    changes = {"optimizer": OPTIMIZER, "clip_norm": clip_norm}
    whole = stepped(*built(data, **changes))
    close(stepped(*built(data, **changes), micro_batch=micro_batch), whole)


def work(rank: int, folder: Path) -> None:
    step_as_one_of_two(rank, folder, splits(train=32, test=16), optimizer=OPTIMIZER, clip_norm=0.5)
    weight = nn.Parameter(torch.ones(2))  # with a gradient of the task only
    weight.grad = torch.full((2,), 1.0 + rank)
    finish_gradients(DOT([weight], 0.1, 0.9, 0.05, 0.0), [weight], None)
    assert weight.grad.tolist() == [1.5, 1.5]
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_with_both_their_batches(data, tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    close(first, stepped(*built(data, optimizer=OPTIMIZER, clip_norm=0.5)))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("kd", {"schedule": {"name": "step", "milestones": [1, 2]}}),
        ("kd", {"clip_norm": 0.5, "precision": "bfloat16", "optimizer": OPTIMIZER | {"delta": 0.0}}),
        ("kd", {"optimizer": OPTIMIZER | {"momentum": 0.45, "delta": 0.45}}),
        ("crd", {}),
        ("ofd", {}),
        ("vid", {"channels_last": True}),
    ],
    ids=str,
)
def test_a_recorded_step_has_the_same_bits(method: str, changes: dict[str, Any]) -> None:
    trials = [trial(method, **({"optimizer": OPTIMIZER} | changes))]
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert (writer.notes, writer.crash, writer.divergence) == ([], None, None)
    assert recorder.replays > 10
    assert same(writer.states, without(trials)[0].states)


def test_a_recorded_training_that_was_stopped_within_an_epoch_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 4)
    data = splits(16 * 10 + 8)
    trials = [trial("kd", epochs=2, optimizer=OPTIMIZER)]
    whole, _ = run(trials, TapeRecorder(), data)
    stopped, _ = run(trials, TapeRecorder(), data, stop_after=1)

    def restore(member: StudentModule) -> None:
        content = stopped[0].mid_epoch
        assert content is not None
        member.restore_mid_epoch(torch.load(io.BytesIO(content), weights_only=True))
        assert member.first_step == 8

    resumed, _ = run(trials, TapeRecorder(), data, restore)
    assert same(whole[0].states, resumed[0].states)


def test_company_and_a_resume_change_nothing(data) -> None:
    trials = [trial("kd"), trial("kd", optimizer=OPTIMIZER), trial("fitnet", optimizer=OPTIMIZER)]
    writers = train(trials, data)
    for member_trial, writer in zip(trials, writers, strict=True):
        (alone,) = train([member_trial], data)
        assert same(alone.states, writer.states)
        (resumed,) = train([member_trial], data, states=[writer.states[0]])
        assert same(resumed.states[-1], writer.states[-1])
    assert not same(writers[0].states[-1]["network"], writers[1].states[-1]["network"])


def test_the_loss_falls_on_digits() -> None:
    small = SmallRun(lr=0.03)
    small.recipe["methods"]["own"] = {"method": "kd", "training": {"optimizer": OPTIMIZER}}
    assert small.trials["own"].optimizer == Settings(name="dot", lr=0.03)
    small.check_learning()
    small.check_resuming()
    small.check_company()
    assert small.trials["kd"].optimizer.name == "sgd"


PLUGIN = """
from kd_bench.methods.base import Method

class Own(Method):
    def forward(self, student, teacher, batch):
        distance = (student.logits - teacher.logits).square().mean()
        return {terms}
"""


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ("{'ce': self.label_loss(student, batch)}", "returns only the term 'ce'"),
        ("{'distance': distance, 'half': distance / 2}", "returns no term 'ce', only 'distance', 'half'"),
        ("{'ce': distance.detach(), 'distance': distance}", "returns the term ce without a gradient"),
        ("{'ce': distance, 'distance': distance.detach()}", "returns the other terms without a gradient"),
    ],
)
def test_a_method_without_both_losses_is_told_so(tmp_path: Path, terms: str, problem: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(terms=terms))
    data = splits(32, 16)
    plugin, kd = train([trial(f"{file}:Own", optimizer=OPTIMIZER), trial("kd", optimizer=OPTIMIZER)], data)
    assert plugin.crash == (
        f"{file}, line 5: Own.forward {problem}, and the optimiser 'dot' needs the gradient of the labels' loss, 'ce', "
        "and that of the other terms; choose optimizer.name 'sgd' for this method"
    )
    assert kd.crash is None
    assert len(kd.states) == 3


@pytest.mark.parametrize("method", ["ab", "fsp"])
def test_a_method_that_distils_in_its_preparation_only_is_told_so_before_it(data, method: str) -> None:
    with pytest.raises(UserError) as caught:
        train([trial(method, optimizer=OPTIMIZER)], data)
    assert str(caught.value) == (
        "optimizer.name: 'dot' needs a method that distils in the student's own epochs, and "
        f"{method!r} reads the teacher only in its preparation; choose 'sgd' for it"
    )


def test_a_row_of_a_recipe() -> None:
    planned = {cell.label: cell.trial for cell in plan(read_recipe(RECIPE), "r")}
    settings = {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "delta": 0.075}
    assert planned["kd_dot"].settings()["optimizer"] == {"name": "dot"} | settings
    assert planned["kd"].cohort_key == planned["kd_dot"].cohort_key
    assert planned["kd"].id != planned["kd_dot"].id
    optimizer = build_optimizer(planned["kd_dot"].optimizer, [nn.Parameter(torch.ones(2))])
    assert isinstance(optimizer, DOT)
    assert optimizer.defaults == settings | {"fused": True, "foreach": None}


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"optimizer": OPTIMIZER, "teacher_training": {"optimizer": {"name": "sgd"}}}, ""),
        ({"optimizer": OPTIMIZER}, ""),
        ({"methods": {"trades": {"training": {"optimizer": OPTIMIZER}}}}, "methods.trades.training: "),
    ],
    ids=["none", "teacher", "adversarial"],
)
def test_what_does_not_distil_from_a_teacher_is_refused(changes: dict[str, Any], context: str) -> None:
    settings = json.loads(json.dumps(RECIPE | changes)) | {"adversarial": {"eps": 0.03, "steps": 1, "step_size": 0.03}}
    with pytest.raises(UserError) as caught:
        plan(read_recipe(settings), "r")
    method = "trades" if "methods" in changes else "none"
    own_key = (
        "methods.none.training" if "teacher_training" in changes else context.removesuffix(": ") or "teacher_training"
    )
    assert str(caught.value) == (
        f"r: {context}optimizer.name: 'dot' needs a method that distils from a teacher, and {method!r} does not; "
        f"choose 'sgd' for it in {own_key}"
    )


def test_the_estimate_counts_both_backward_passes_and_both_momenta() -> None:
    images = splits()
    sgd, dot = (count_cohort([trial("kd", **changes)], images).members[0] for changes in ({}, {"optimizer": OPTIMIZER}))
    assert (dot.gradients, dot.optimizer, dot.saved) == (2 * sgd.gradients, 2 * sgd.optimizer, sgd.saved)
    assert 1.5 < dot.step.flops / sgd.step.flops < 5 / 3
