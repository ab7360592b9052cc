"""Contrastive representation distillation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.connectors import embedding
from kd_bench.methods.parameters import Fraction, NonNegative, Positive, PositiveCount
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.distributed import all_gather


class CRD(Method):
    """Contrastive distillation: an image's embedding must know the other network's embedding of it among many.

    ce_weight * CE + crd_weight * (student against the teacher's bank + teacher against the student's bank). Tian et
    al., "Contrastive Representation Distillation" (2020), eq. 17 to 19, as released with ``mode exact``: the positive
    is the image itself. Both pooled embeddings go through a linear layer each, both of them trained, to ``feature_dim``
    numbers of length 1; a bank holds one such vector an image for each network and follows with ``momentum``.

    The negatives of an image are images of other classes, without replacement as long as every class leaves enough
    others, as published. They are drawn for the batch at once: from one random order of all images each takes the next
    ones of other classes after an offset of its own, which for each by itself is a uniformly random set. The
    normalisers Z are set once from the first (micro-)batch, a quirk of the published code that the published numbers
    come from; ``normaliser`` "batch" takes them anew from every batch.

    Args:
        crd_weight: Weight of the contrastive loss.
        negatives: Negatives an image.
        feature_dim: Numbers an embedding has in the banks.
        temperature: T of the scores.
        momentum: Share of its former value that a bank's vector keeps.
        normaliser: "first" or "batch", as above.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    student_bank: Tensor
    """(N, feature_dim), a row an image."""
    teacher_bank: Tensor
    """(N, feature_dim)."""
    log_z: Tensor
    """(2,) logarithms of the normalisers of the student's and the teacher's scores; NaN before the first batch."""
    classes: Tensor
    """(N,) int64, the class of each image."""
    _by_class: Tensor
    """(N,) int64, the images class by class."""
    _begins: Tensor
    """(K + 1,) int64, where in it a class begins."""

    def __init__(
        self,
        pair: Pair,
        *,
        crd_weight: NonNegative = 0.8,
        negatives: PositiveCount = 16384,
        feature_dim: PositiveCount = 128,
        temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
        normaliser: Literal["first", "batch"] = "first",
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.crd_weight, self.ce_weight, self.negatives = crd_weight, ce_weight, negatives
        self.temperature, self.momentum, self.normaliser = temperature, momentum, normaliser
        if pair.teacher is None or pair.student.pooled is None or pair.teacher.pooled is None:
            raise ValueError("crd needs the pooled embeddings of both networks")
        if pair.train_labels is None:
            raise ValueError("crd needs the class of every training image")
        self.embed_student = nn.Linear(pair.student.pooled[0], feature_dim)
        self.embed_teacher = nn.Linear(pair.teacher.pooled[0], feature_dim)
        largest = 1.0 / math.sqrt(feature_dim / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(pair.train_size, feature_dim).uniform_(-largest, largest))
        self.register_buffer("log_z", torch.full((2,), math.nan))
        # It follows from the data set, so it is not part of what is checkpointed.
        self.register_buffer("classes", pair.train_labels.clone(), persistent=False)
        counts = pair.train_labels.bincount(minlength=pair.num_classes)
        self.register_buffer("_by_class", pair.train_labels.argsort(stable=True), persistent=False)
        self.register_buffer("_begins", F.pad(counts.cumsum(0), (1, 0)), persistent=False)
        self._most = int(counts.max())
        self._normalised = False
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Terms "ce" and "crd"."""
        ours = self._embed(self.embed_student, embedding(student))
        theirs = self._embed(self.embed_teacher, embedding(require_teacher(teacher)).detach())
        index = torch.cat([batch.index[:, None], self._draw(batch.index)], 1)
        log_z = self._log_z(ours, theirs, index)
        contrast = losses.contrast(ours, self.teacher_bank, index, log_z[0], self.temperature)
        contrast = contrast + losses.contrast(theirs, self.student_bank, index, log_z[1], self.temperature)
        if self.training:
            self._seen.append((batch.index, ours.detach(), theirs.detach()))
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "crd": self.crd_weight * contrast,
        }

    def on_step_end(self) -> None:
        """Moves the banks towards the step's embeddings, of all processes."""
        if not self._seen:
            return
        images, ours, theirs = (all_gather(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        self._remember(self.student_bank, images, ours)
        self._remember(self.teacher_bank, images, theirs)

    @staticmethod
    def _embed(layer: nn.Module, pooled: Tensor) -> Tensor:
        return F.normalize(losses.at_least_float32(layer(pooled)))

    @torch.no_grad()
    def _draw(self, images: Tensor) -> Tensor:
        """(B, negatives) images of other classes than that of each of the (B,) ``images``."""
        own, device, total = self.classes[images][:, None], images.device, len(self.classes)
        if total - self._most < self.negatives:
            # uniform over the places that are left when an image's class is taken out of the order by class
            begins, ends = self._begins[own], self._begins[own + 1]
            draws = torch.rand(len(images), self.negatives, device=device, dtype=torch.float64)
            places = (draws * (total - ends + begins)).long()
            return self._by_class[(ends + places) % total]
        reach = self.negatives + self._most  # holds enough of other classes, wherever it begins
        order = torch.randperm(total, device=device)
        order = torch.cat([order, order[: reach - 1]])
        offsets = torch.randint(total, (len(images),), device=device)
        stretches = order.unfold(0, reach, 1)[offsets]
        others = self.classes[order].unfold(0, reach, 1)[offsets] != own
        places = others.cumsum(1, dtype=torch.int32) - 1
        # What is of the same class, or not needed any more, goes to a last column that is cut off.
        places = torch.where(others & (places < self.negatives), places, self.negatives)
        found = stretches.new_empty(len(images), self.negatives + 1)
        return found.scatter_(1, places.long(), stretches)[:, :-1]

    @torch.no_grad()
    def _log_z(self, ours: Tensor, theirs: Tensor, index: Tensor) -> Tensor:
        if self.normaliser == "first" and not self._normalised:
            self._normalised = not bool(self.log_z.isnan().any())  # the only time that the device is asked
        if self.normaliser == "first" and self._normalised:
            return self.log_z
        sides = ((ours, self.teacher_bank), (theirs, self.student_bank))
        found = torch.stack([losses.log_normaliser(*side, index, self.temperature) for side in sides])
        # Of several processes the first has the step's first micro-batch, as one process with all of them has.
        self.log_z.copy_(all_gather(found[None])[0] if self.normaliser == "first" else found)
        return self.log_z

    @torch.no_grad()
    def _remember(self, bank: Tensor, images: Tensor, embeddings: Tensor) -> None:
        bank[images] = F.normalize(self.momentum * bank[images] + (1 - self.momentum) * embeddings)
