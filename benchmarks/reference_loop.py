"""The training loop of published code, which the suite is compared with.

It does what mdistiller does: PIL images one by one through torch's ``DataLoader`` with torchvision's transforms; CRD's
negatives drawn for each sample in the data set; a teacher of separate convolutions and batch norms in float32 that
returns all outputs at each step, OFD's in training mode; one student that returns all outputs, too; the losses in their
direct forms (tests/losses/direct.py), ReviewKD's fusions on maps of full size; torch's plain SGD; loss and accuracies
read as numbers after each step. Networks, the methods' other layers and initial weights are those of the suite, so that
both compute the same loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import pairs
from benchmarks.loader import CROP_AND_FLIP, TO_TENSOR, PilImages
from kd_bench import losses
from kd_bench.config.optimizer import SGD
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _connectors as connectors
from kd_bench.models.fast_convs import DepthwiseConv2d, PointwiseConv2d
from kd_bench.models.outputs import observe
from kd_bench.types import Batch, Output
from tests.losses import direct, naive

ALL_OUTPUTS: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})


def pil_images(images: ArrayDataset) -> PilImages:
    """Returns the training images, which all loops share, with the usual augmentation."""
    return PilImages(images.train_images, images.train_labels, T.Compose([*CROP_AND_FLIP, *TO_TENSOR]))


class _InstanceDataset(Dataset[tuple[Any, ...]]):
    """PIL images with their index and, for CRD, their negatives: random images of other classes."""

    def __init__(self, images: PilImages, negatives: int | None) -> None:
        self.images, self.negatives = images, negatives
        self._random = np.random.RandomState(0)
        if negatives is not None:
            labels = np.array(images.labels)
            self._other_classes = [np.flatnonzero(labels != label) for label in range(labels.max() + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label = self.images[index]
        if self.negatives is None:
            return image, label, index
        others = self._other_classes[label]
        return image, label, index, self._random.choice(others, self.negatives, replace=self.negatives > len(others))


class ReferenceLoop:
    """The training of one trial. ``dataset`` is ``pil_images(images)``. The teacher has batch norms, and is copied."""

    def __init__(self, trial: Trial, images: ArrayDataset, dataset: PilImages, teacher: nn.Module) -> None:
        member = pairs.build_member(trial, images, teacher)
        self.name = trial.method.name
        self.network, self.method = member.network.to(memory_format=torch.contiguous_format), member.method
        for module in (*self.network.modules(), *self.method.modules()):
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
        self._loader = DataLoader(_InstanceDataset(dataset, negatives), trial.batch_size, shuffle=True, drop_last=True)
        self._batches: Iterator[Any] = iter(())
        self.seen = self.hits = self.losses = 0.0

    def next_batch(self) -> tuple[Batch, Tensor | None]:
        """Returns a batch, and CRD's negatives for it."""
        items = next(self._batches, None)
        if items is None:
            self._batches = iter(self._loader)
            items = next(self._batches)
        images, labels, index, *negatives = items
        return Batch(images, labels, index, pairs.EPOCH, 0), negatives[0] if negatives else None

    def step(self) -> float:
        """Runs one step, from images to numbers, and returns the loss."""
        return self.train(*self.next_batch())

    def train(self, batch: Batch, negatives: Tensor | None) -> float:
        """Trains on a batch and returns the loss."""
        self.optimizer.zero_grad()
        student = observe(self.network, batch.images, ALL_OUTPUTS)
        with torch.no_grad():
            teacher = observe(self.teacher, batch.images, ALL_OUTPUTS)
        with direct_forms(), fixed_negatives(self.method, negatives):
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
    """Inside, the methods compute their losses as published code does."""

    def unweighted(form: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a form without sample weights, which the methods give as None."""
        return lambda *arguments: form(*(argument for argument in arguments if argument is not None))

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
        "kd": unweighted(direct.kd),
        "dkd_terms": unweighted(dkd_terms),
        "pairwise_mse": unweighted(naive.pairwise_mse),
        "dist_terms": direct.dist_terms,
        "rkd_distance": direct.rkd_distance,
        "rkd_angle": direct.rkd_angle,
        "contrast": contrast,
        "log_normaliser": log_normaliser,
        "partial_l2": partial_l2,
        "hierarchical_context": direct.hierarchical_context,
    }
    closed_forms, fusion_forward = {name: getattr(losses, name) for name in forms}, connectors.Fusion.forward
    connectors.Fusion.forward = _fusion_forward  # type: ignore[method-assign]
    try:
        for name, form in forms.items():
            setattr(losses, name, form)
        yield
    finally:
        connectors.Fusion.forward = fusion_forward  # type: ignore[method-assign]
        for name, form in closed_forms.items():
            setattr(losses, name, form)


def _fusion_forward(self: connectors.Fusion, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
    """ReviewKD's fusion, with all maps repeated to their full size first."""
    x = self.reduce(x)
    if self.attention is not None and deeper is not None:
        deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
        weights = self.attention(torch.cat([x, deeper], 1)).sigmoid()
        x = x * weights[:, :1] + deeper * weights[:, 1:]
    if x.shape[2:] != self.size:
        x = F.interpolate(x, self.size, mode="nearest")
    return self.restore(x), x


@contextmanager
def fixed_negatives(method: Any, negatives: Tensor | None) -> Iterator[None]:
    """Inside, CRD uses these negatives instead of drawing its own; None changes nothing."""
    if negatives is None:
        yield
        return
    method._draw_negatives = lambda images, generator=None: negatives
    try:
        yield
    finally:
        del method._draw_negatives
