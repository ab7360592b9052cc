"""A small set of images, tiny networks' trials, and a writer that keeps everything in memory."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _registry as methods
from kd_bench.testing import first_difference
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule

CPU = torch.device("cpu")


def splits(train: int = 72, test: int = 40) -> ArrayDataset:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(train + test) % 4
    images = torch.randint(0, 256, (train + test, 3, 32, 32), generator=draws, dtype=torch.uint8)
    images[:, 0] = (images[:, 0] // 4) + labels[:, None, None].to(torch.uint8) * 48  # something to be learned
    return ArrayDataset(
        train_images=images[:train].contiguous(),
        test_images=images[train:].contiguous(),
        train_labels=labels[:train].contiguous(),
        test_labels=labels[train:].contiguous(),
        class_names=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


#: Epochs of a preparation in a small trial.
PREPARATION_EPOCHS = 2


def trial(method: str = "kd", *, taught: bool = True, **changes: Any) -> Trial:
    hyperparameters, logit_settings = changes.pop("hyperparameters", {}), changes.pop("logit_settings", {})
    if any(parameter.name == "preparation_epochs" for parameter in methods.describe(method).parameters):
        hyperparameters = {"preparation_epochs": PREPARATION_EPOCHS} | hyperparameters
    settings = {
        "dataset": {"name": "digits"},
        "augment": {"crop": 2, "flip": True},
        "epochs": 3,
        "batch_size": 16,
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"name": "cosine"},
        "model": "cifar_resnet8",
        "method": {
            "name": method,
            "hyperparameters": methods.check(method, hyperparameters),
            "source": methods.source_hash(method),
            **logit_settings,
        },
        "seed": 3,
    } | changes
    if taught and method != "none":
        settings["teacher"] = trial("none", model="cifar_resnet14", seed=0).settings()
    return Trial.model_validate_json(json.dumps(settings))


class MemoryWriter(ResultWriter):
    """Keeps every state that a trial's folder would."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.divergence: str | None = None
        self.crash: str | None = None

    def write_epoch(self, member: StudentModule) -> None:
        self.states.append(copy.deepcopy(member.state()))

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        self.divergence = reason

    def report_crash(self, member: StudentModule, reason: str) -> None:
        self.crash = reason


def train(
    trials: list[Trial], data: ArrayDataset, *, states: list[dict[str, Any] | None] | None = None
) -> list[MemoryWriter]:
    """Trains a cohort; ``states`` are where its members go on from. Returns what each member reported."""
    writers = [MemoryWriter() for _ in trials]
    taught = trials[0].teacher
    teacher = build_network(taught, data)[0].eval() if taught else None
    members = [
        build_student(member_trial, data, teacher, writer) for member_trial, writer in zip(trials, writers, strict=True)
    ]
    for member, state in zip(members, states or [None] * len(members), strict=True):
        if state is not None:
            member.restore(copy.deepcopy(state))
    fit(CohortModule(members, teacher), *loaders(trials[0], data, CPU), CPU)
    return writers


def same(state: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit, the times that things took aside."""
    return not first_difference(state, other)
