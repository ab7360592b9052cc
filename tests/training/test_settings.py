"""What a trial's settings make of a step: optimisers, schedules, precision, micro-batches, averages, processes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from kd_bench.config.optimizer import Lamb
from kd_bench.config.trial import Training
from kd_bench.models.outputs import observe
from kd_bench.training.micro_batch import MicroBatch, split_micro_batches
from kd_bench.training.optimizers import build_optimizer, learning_rate
from tests.training.parts import same, splits, train, trial
from tests.training.steps import PLAIN, built, close, step_as_one_of_two, stepped


@pytest.fixture(scope="module")
def data():
    return splits(train=32, test=16)


@pytest.mark.parametrize("micro_batch", [2, 4, 6])
@pytest.mark.parametrize("method", ["kd", "ikl_kd"])
def test_micro_batches_add_up(data, method: str, micro_batch: int) -> None:
    whole = stepped(*built(data, method=method))
    close(stepped(*built(data, method=method), micro_batch=micro_batch), whole)


def test_a_micro_batch_through_a_whole_training(data) -> None:
    changes = {"model": PLAIN, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.01}}
    whole, divided = (train([trial("kd", **changes, **settings)], data)[0] for settings in ({}, {"micro_batch": 4}))
    close(divided.states[-1]["network"], whole.states[-1]["network"])
    assert divided.states[-1]["history"][0]["train_loss"] == pytest.approx(whole.states[-1]["history"][0]["train_loss"])


def test_parts_of_a_batch(data) -> None:
    batch = built(data)[2][0]
    assert [(len(part.batch.images), part.share, part.first, part.last) for part in split_micro_batches(batch, 3)] == [
        (3, 3 / 8, True, False),
        (3, 3 / 8, False, False),
        (2, 2 / 8, False, True),
    ]
    assert list(split_micro_batches(batch, None)) == [MicroBatch(batch)]
    with pytest.raises(ValueError, match="micro_batch must divide batch_size, which is 64"):
        Training(micro_batch=7)


def work(rank: int, folder: Path) -> None:
    changes = {"method": "ikl_kd", "clip_norm": 1.0, "ema": 0.9}
    step_as_one_of_two(rank, folder, splits(train=32, test=16), **changes)
    dist.destroy_process_group()


def test_two_processes_train_as_one_with_both_their_batches(data, tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    close(first, stepped(*built(data, method="ikl_kd", clip_norm=1.0)))


def test_the_average_follows_the_weights(data) -> None:
    member, teacher, batches = built(data, ema=0.75)
    history = []
    for batch in batches[:3]:
        stepped(member, teacher, [batch])
        history.append(copy.deepcopy(member.network.state_dict()))
    expected = history[0]
    for state in history[1:]:
        expected = {key: 0.75 * value + 0.25 * state[key] for key, value in expected.items()}
    assert member.average is not None
    close({key: value.float() for key, value in member.average.module.state_dict().items()}, expected)


def test_an_average_is_evaluated_and_resumed(data) -> None:
    member_trial = trial("kd", ema=0.9)
    whole = train([member_trial], data)[0]
    assert all(0 <= row["average_top1"] <= 100 for row in whole.states[-1]["history"])
    assert same(train([member_trial], data, states=[whole.states[0]])[0].states[-1], whole.states[-1])


def test_half_precision_trains_in_half_precision(data) -> None:
    half, full = (
        train([trial("ikl_kd", **changes)], data)[0].states[-1] for changes in ({"precision": "bfloat16"}, {})
    )
    assert all(value.dtype == torch.float32 for value in half["network"].values() if value.is_floating_point())
    last, other = half["history"][-1], full["history"][-1]
    assert last["train_loss"] != other["train_loss"]
    assert last["train_loss"] == pytest.approx(other["train_loss"], rel=0.2)


@pytest.mark.parametrize("method", ["kd", "dist"])
def test_labels_by_binary_cross_entropy(data, method: str) -> None:
    member, teacher, batches = built(data, method=method, label_loss="binary_cross_entropy")
    batch = batches[0]
    student = observe(member.network, batch.images, frozenset({"logits"}))
    taught = observe(teacher, batch.images, member.method.needs.teacher)
    weight = 0.1 if method == "kd" else 1.0
    expected = F.binary_cross_entropy_with_logits(student.logits, F.one_hot(batch.labels, 4).float())
    torch.testing.assert_close(member.method(student, taught, batch)["ce"], weight * expected)


def test_stochastic_depth_reaches_the_student(data) -> None:
    member = built(data, drop_path=0.3)[0]
    rates = [module.drop_prob for module in member.network.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)


def test_lamb_decays_weights_only_and_trains(data) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(Lamb(name="lamb", lr=0.1, weight_decay=0.3), network.parameters())
    weight_decays = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert [weight_decays[id(parameter)] for parameter in network.parameters()] == [0.3, 0, 0, 0]
    history = train([trial("none", epochs=6, optimizer={"name": "lamb", "lr": 0.02})], data)[0].states[-1]["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_timms_cosine_schedule() -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    timm_scheduler = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-6)
    schedule = Training.model_validate_json(
        json.dumps(
            {"schedule": {"name": "cosine", "warmup_epochs": 5, "warmup_lr": 1e-6, "final": 2e-4, "whole": True}}
        )
    ).schedule
    for epoch in range(300):
        timm_scheduler.step(epoch)
        assert learning_rate(5e-3, schedule, epoch, 300) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
