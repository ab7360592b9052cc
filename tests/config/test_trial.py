"""Trials: the settings that the trials of a cohort share."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from kd_bench.config.adversarial import Adversarial, Generated, SecondView
from kd_bench.config.base import PerTrial, Settings, Shared, shared_fields
from kd_bench.config.data import Augment, Dataset, Pipeline
from kd_bench.config.optimizer import SGD
from kd_bench.config.trial import MethodSettings, PretrainedTeacher, Training, Trial, identity

ADVERSARIAL = Adversarial(eps=0.1, steps=2)
TRIAL = Trial(
    dataset=Dataset(name="cifar100"),
    model="resnet8",
    method=MethodSettings(name="kd"),
    seed=0,
    adversarial=ADVERSARIAL,
)

#: Every setting that changes the batches or the teacher's outputs.
SHARED = {
    "dataset",
    "augment",
    "second_view",
    "pipeline",
    "batch_size",
    "micro_batch",
    "precision",
    "epochs",
    "seed",
    "channels_last",
    "compile",
    "teacher_precision",
    "teacher",
}


def test_shared_settings() -> None:
    nested = {"second_view": True, "generated": True}
    assert shared_fields(Trial) == {**dict.fromkeys(SHARED, True), "adversarial": nested}


@pytest.mark.parametrize("model", [Training, Trial, Adversarial])
def test_every_setting_is_marked(model: type[BaseModel]) -> None:
    shared_fields(model)


def test_a_setting_without_a_mark_is_an_error() -> None:
    class Nested(Settings):
        rate: Shared[float] = 0.0
        steps: int = 1

    class Extended(Training):
        nested: Nested | None = None

    class Plain(Training):
        rate: float = 0.0

    with pytest.raises(TypeError, match=r"^Nested\.steps is marked neither Shared nor PerTrial$"):
        shared_fields(Extended)
    with pytest.raises(TypeError, match=r"^Plain\.rate is marked neither Shared nor PerTrial$"):
        shared_fields(Plain)


def test_marks_do_not_change_types() -> None:
    class Marked(Settings):
        rate: PerTrial[float | None] = None

    assert Marked.model_fields["rate"].annotation == float | None
    assert Trial.model_fields["dataset"].annotation is Dataset


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": Dataset(name="cifar10")},
        {"augment": Augment(crop=2)},
        {"pipeline": Pipeline()},
        {"batch_size": 32},
        {"micro_batch": 16},
        {"precision": "bfloat16"},
        {"epochs": 3},
        {"seed": 1},
        {"channels_last": True},
        {"compile": "off"},
        {"teacher_precision": "float32"},
        {"teacher": TRIAL},
        {"teacher": PretrainedTeacher(dataset=Dataset(name="cifar100"), model="resnet14", weights="0" * 64)},
        {"adversarial": None},
        {"adversarial": ADVERSARIAL.model_copy(update={"second_view": SecondView()})},
        {"adversarial": ADVERSARIAL.model_copy(update={"generated": Generated(path="a.npz")})},
    ],
    ids="-".join,
)
def test_trials_with_another_shared_setting_are_apart(change: dict[str, Any]) -> None:
    assert TRIAL.model_copy(update=change).cohort_key != TRIAL.cohort_key


def test_a_trial_without_a_teacher_may_join_those_that_see_the_same_batches() -> None:
    teachers = [{"teacher": TRIAL}, {"teacher": TRIAL, "teacher_precision": "bfloat16"}]
    assert {TRIAL.model_copy(update=change).stream_key for change in teachers} == {TRIAL.stream_key}
    others: list[dict[str, Any]] = [{"seed": 1}, {"batch_size": 32}, {"epochs": 3}, {"precision": "bfloat16"}]
    for change in [*others, {"augment": Augment(crop=2)}, {"adversarial": None}]:
        assert TRIAL.model_copy(update=change).stream_key != TRIAL.stream_key


def test_trials_with_other_settings_are_trained_together() -> None:
    changes: list[dict[str, Any]] = [
        {"model": "resnet14", "model_source": "0" * 64, "method": MethodSettings(name="dkd")},
        {"optimizer": SGD(lr=1.0), "clip_norm": 1.0, "ema": 0.5, "drop_path": 0.1, "sync_batch_norm": True},
        {"adversarial": ADVERSARIAL.model_copy(update={"eps": 0.2, "norm": "L2", "ramp": True})},
    ]
    assert {TRIAL.model_copy(update=change).cohort_key for change in changes} == {TRIAL.cohort_key}


def test_a_copy_has_the_identity_of_its_own_settings() -> None:
    assert TRIAL.id == identity(TRIAL.settings())
    copy = TRIAL.model_copy(update={"seed": 1})
    assert copy.id == identity(copy.settings()) != TRIAL.id
    assert TRIAL.model_copy(deep=True).id == TRIAL.id
