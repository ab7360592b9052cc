"""A small network, adversarially trained on digits in seconds, and the images that it is attacked with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.config.attack import Attack
from kd_bench.config.data import Dataset
from kd_bench.data import registry as datasets
from kd_bench.robustness.evaluation_record import EvaluationRecord
from kd_bench.robustness.pgd import cross_entropy, pgd

EPS = 0.12


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """(N, 3, 8, 8) uint8 images and their labels."""
    splits = datasets.load(Dataset(name="digits"))
    return splits.test_images[:, :, ::4, ::4].contiguous(), splits.test_labels


def train(seed: int = 0, classes: int = 10, eps: float = EPS, epochs: int = 8) -> nn.Module:
    """Adversarially trained with PGD of three steps on the first 1,000 digits; ``eps`` 0 trains on them as they are."""
    net = network(classes, seed)
    images, labels = digits()
    keep = labels[:1000] < classes
    images, labels = images[:1000][keep].float() / 255, labels[:1000][keep]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for some in order.split(100):
            x, y = images[some], labels[some]
            if eps:
                x = pgd(net, x, cross_entropy(y), eps=eps, steps=3, step_size=eps / 2, start="none")
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


@functools.cache
def robust(classes: int = 10) -> nn.Module:
    return train(classes=classes)


def held_out(count: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Digits that were not trained on."""
    images, labels = digits()
    keep = (labels[1000:] < classes).nonzero().flatten()[:count]
    return images[1000:][keep], labels[1000:][keep]


def record(path: Path, attacks: Sequence[str], count: int, **settings: object) -> EvaluationRecord:
    attack = Attack.model_validate({"eps": EPS, "attacks": tuple(attacks), **settings})
    return EvaluationRecord(path, attack, {"weights": "0"}, range(count), count)
