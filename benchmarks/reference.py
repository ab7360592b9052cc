"""The loop that published code trains a student in, to compare the suite's with.

As mdistiller does it, written anew: PIL images one by one through torch's ``DataLoader`` with torchvision's transforms;
CRD's negatives drawn for each sample in the data set; a teacher of separate convolutions and batch norms in float32
that puts out everything at each step, OFD's in training mode; one student that puts out everything, too; the losses in
their direct forms (tests/losses/direct.py), ReviewKD's fusions on maps of full size; torch's plain SGD; loss and
accuracies read as numbers after each step. Networks, the methods' other layers and initial weights are the suite's, so
that both compute the same loss.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import pairs
from benchmarks.loader import CROP_AND_FLIP, TO_TENSOR, Pictures
from kd_bench import losses
from kd_bench.config.optimizer import SGD
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import connectors
from kd_bench.models.fast_convs import DepthwiseConv2d, PointwiseConv2d
from kd_bench.models.outputs import observe
from kd_bench.types import Batch, Output
from tests.losses import direct, naive

EVERYTHING: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})


def pictures(data: ArrayDataset) -> Pictures:
    """The images for all trials."""
    return Pictures(data.train_images, data.train_labels, T.Compose([*CROP_AND_FLIP, *TO_TENSOR]))


class Instances(Dataset[tuple[Any, ...]]):
    """PIL images with their place in the set and, for CRD, their negatives: random images of other classes."""

    def __init__(self, images: Pictures, negatives: int | None) -> None:
        self.images, self.negatives = images, negatives
        self._draws = np.random.RandomState(0)
        if negatives is not None:
            labels = np.array(images.labels)
            self._others = [np.flatnonzero(labels != label) for label in range(labels.max() + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        picture, label = self.images[index]
        if self.negatives is None:
            return picture, label, index
        others = self._others[label]
        return picture, label, index, self._draws.choice(others, self.negatives, replace=self.negatives > len(others))


class Reference:
    """One trial.

    Args:
        trial: Its settings.
        data: The images.
        images: The same as ``pictures``.
        teacher: As it was trained, with its batch norms; copied.
    """

    def __init__(self, trial: Trial, data: ArrayDataset, images: Pictures, teacher: nn.Module) -> None:
        built = pairs.member(trial, data, teacher)
        self.name = trial.method.name
        self.network, self.method = built.network.to(memory_format=torch.contiguous_format), built.method
        for part in (self.network, self.method):
            for module in part.modules():
                if isinstance(module, (PointwiseConv2d, DepthwiseConv2d)):
                    module.__class__ = nn.Conv2d
        self.teacher = copy.deepcopy(teacher).to(memory_format=torch.contiguous_format)
        self.teacher.train(self.name == "ofd")
        settings = trial.optimizer
        assert isinstance(settings, SGD)
        self.optimizer = torch.optim.SGD(
            [*self.network.parameters(), *self.method.parameters()],
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        negatives = self.method.negatives if self.name == "crd" else None
        self._loader = DataLoader(Instances(images, negatives), trial.batch_size, shuffle=True, drop_last=True)
        self._stream: Iterator[Any] = iter(())
        self.seen = self.hits = self.losses = 0.0

    def next(self) -> tuple[Batch, Tensor | None]:
        """A batch, and CRD's negatives for it."""
        found = next(self._stream, None)
        if found is None:
            self._stream = iter(self._loader)
            found = next(self._stream)
        picture, label, index, *negatives = found
        return Batch(picture, label, index, pairs.EPOCH, 0), negatives[0] if negatives else None

    def step(self) -> float:
        """One step, from images to numbers; the loss."""
        return self.train(*self.next())

    def train(self, batch: Batch, negatives: Tensor | None) -> float:
        self.optimizer.zero_grad()
        student = observe(self.network, batch.images, EVERYTHING)
        with torch.no_grad():
            teacher = observe(self.teacher, batch.images, EVERYTHING)
        with direct_forms(), given(self.method, negatives):
            terms = self.method(student, teacher, batch)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        self.optimizer.step()
        self.method.on_step_end()
        hits = student.logits.topk(5, 1).indices == batch.labels[:, None]
        self.seen += len(batch.images)
        self.hits += hits[:, 0].float().sum().item() + hits.float().sum().item()
        self.losses += loss.item()
        return loss.item()


@contextmanager
def direct_forms() -> Iterator[None]:
    """Inside, the methods compute their losses the way published code does."""

    def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, ...]:
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        return direct.dkd(student, teacher, labels, first, second, temperature).unbind()  # type: ignore[arg-type]

    def contrast(anchors: Tensor, bank: Tensor, index: Tensor, log_z: Tensor, temperature: float) -> Tensor:
        return direct.contrast(anchors, bank, index, log_z.exp(), temperature)

    def log_normaliser(anchors: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
        return direct.normaliser(anchors, bank, index, temperature).log()

    def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
        return direct.partial_l2(student, teacher, margin.flatten())

    forms = {
        "kd": direct.kd,
        "dkd_terms": dkd_terms,
        "pairwise_mse": naive.pairwise_mse,
        "dist_terms": direct.dist_terms,
        "rkd_distance": direct.rkd_distance,
        "rkd_angle": direct.rkd_angle,
        "contrast": contrast,
        "log_normaliser": log_normaliser,
        "partial_l2": partial_l2,
        "hierarchical_context": direct.hierarchical_context,
    }
    ours, fuse = {name: getattr(losses, name) for name in forms}, connectors.Fusion.forward
    connectors.Fusion.forward = _fuse  # type: ignore[method-assign]
    try:
        for name, form in forms.items():
            setattr(losses, name, form)
        yield
    finally:
        connectors.Fusion.forward = fuse  # type: ignore[method-assign]
        for name, form in ours.items():
            setattr(losses, name, form)


def _fuse(self: connectors.Fusion, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
    """ReviewKD's fusion with all maps repeated to their full size first."""
    x = self.reduce(x)
    if self.attention is not None and deeper is not None:
        deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
        weights = self.attention(torch.cat([x, deeper], 1)).sigmoid()
        x = x * weights[:, :1] + deeper * weights[:, 1:]
    if x.shape[2:] != self.size:
        x = F.interpolate(x, self.size, mode="nearest")
    return self.restore(x), x


@contextmanager
def given(method: Any, negatives: Tensor | None) -> Iterator[None]:
    """Inside, CRD takes these negatives and draws none."""
    if negatives is None:
        yield
        return
    method._draw = lambda images: negatives
    try:
        yield
    finally:
        del method._draw
