"""Contrastive representation distillation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import embedding
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Fraction, NonNegative, Positive, PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.distributed import all_gather


class CRD(Method):
    """Contrastive distillation: each embedding is contrasted with the other network's embeddings of many images.

    ce_weight * CE + crd_weight * (student against the teacher's bank + teacher against the student's bank). Tian et
    al., "Contrastive Representation Distillation" (2020), eq. 17 to 19, as released with ``mode exact``: the positive
    is the image itself. A trained linear layer per network maps its pooled embedding to ``feature_dim`` numbers of
    length 1. A bank per network holds one such vector per training image and is updated with ``momentum``; if a batch
    has several views of an image, by the last one.

    The negatives of an image are images of other classes, drawn without replacement if every class leaves enough
    others, as published. They are drawn for the batch at once: all images are shuffled once, and each image takes the
    next images of other classes after an offset of its own, which is a uniformly random set for each image by itself.
    The normalisers Z are set once from the first (micro-)batch, a quirk of the published code that the published
    numbers come from; ``normaliser`` "batch" computes them again from every batch.

    Args:
        crd_weight: Weight of the contrastive loss.
        negatives: Negatives per image.
        feature_dim: Width of the embeddings in the banks.
        temperature: T of the scores.
        momentum: Share of its previous value that a vector of a bank keeps.
        normaliser: Batches that set Z: "first" or "batch" (every batch), as above.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    student_bank: Tensor
    """(N, feature_dim), one row per training image."""
    teacher_bank: Tensor
    """(N, feature_dim)."""
    log_z: Tensor
    """(2,) logarithms of the normalisers of the student's and the teacher's scores; NaN before the first batch."""
    classes: Tensor
    """(N,) int64, the class of each image."""
    _by_class: Tensor
    """(N,) int64, indices of the images sorted by class."""
    _class_starts: Tensor
    """(K + 1,) int64, position in ``_by_class`` at which each class starts."""

    def __init__(
        self,
        pair: Pair,
        *,
        crd_weight: Weight = 0.8,
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
        bound = 1.0 / math.sqrt(feature_dim / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(pair.train_size, feature_dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.nan))
        # Not checkpointed, because they follow from the data set.
        self.register_buffer("classes", pair.train_labels.clone(), persistent=False)
        counts = pair.train_labels.bincount(minlength=pair.num_classes)
        self.register_buffer("_by_class", pair.train_labels.argsort(stable=True), persistent=False)
        self.register_buffer("_class_starts", F.pad(counts.cumsum(0), (1, 0)), persistent=False)
        self._largest_class = int(counts.max())
        self._normalised = False
        self._step_embeddings: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "crd"."""
        student_embedding = self._embed(self.embed_student, embedding(student))
        teacher_embedding = self._embed(self.embed_teacher, embedding(require_teacher(teacher)).detach())
        index = torch.cat([batch.index[:, None], self._draw_negatives(batch.index, batch.generator)], 1)
        log_z = self._log_z(student_embedding, teacher_embedding, index)
        contrast = losses.contrast(student_embedding, self.teacher_bank, index, log_z[0], self.temperature)
        contrast = contrast + losses.contrast(teacher_embedding, self.student_bank, index, log_z[1], self.temperature)
        if self.training:
            self._keep(batch.index, student_embedding.detach(), teacher_embedding.detach())
        return {"ce": self.ce_weight * self.label_loss(student, batch), "crd": self.crd_weight * contrast}

    def _keep(self, images: Tensor, student_embedding: Tensor, teacher_embedding: Tensor) -> None:
        """Keeps the embeddings of a micro-batch until the end of the step.

        If embeddings of the same micro-batch are already there, the step runs a second time, because its recording on a
        GPU failed. The earlier embeddings are dropped, because a recording computes no values.
        """
        if any(images.data_ptr() == step_images.data_ptr() for step_images, _, _ in self._step_embeddings):
            self._step_embeddings.clear()
        self._step_embeddings.append((images, student_embedding, teacher_embedding))

    def on_step_end(self) -> None:
        """Updates the banks with the step's embeddings from all processes."""
        if not self._step_embeddings:
            return
        images, student_embedding, teacher_embedding = (
            all_gather(torch.cat(parts)) for parts in zip(*self._step_embeddings, strict=True)
        )
        self._step_embeddings.clear()
        # The views of an image write the same vector, because a device may write a repeated row in any order.
        last = ((images[:, None] == images) * torch.arange(len(images), device=images.device)).amax(1)
        student_embedding, teacher_embedding = student_embedding[last], teacher_embedding[last]
        self._update(self.student_bank, images, student_embedding)
        self._update(self.teacher_bank, images, teacher_embedding)

    @staticmethod
    def _embed(layer: nn.Module, pooled: Tensor) -> Tensor:
        return F.normalize(losses.at_least_float32(layer(pooled)))

    @torch.no_grad()
    def _draw_negatives(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns indices of images of other classes, (B, negatives), for the images with indices ``images``, (B,)."""
        labels, device, total = self.classes[images][:, None], images.device, len(self.classes)
        if total - self._largest_class < self.negatives:
            # With replacement: uniform over the positions in _by_class outside the image's own class.
            starts, ends = self._class_starts[labels], self._class_starts[labels + 1]
            draws = torch.rand(len(images), self.negatives, device=device, dtype=torch.float64, generator=generator)
            positions = (draws * (total - ends + starts)).long()
            return self._by_class[(ends + positions) % total]
        window = self.negatives + self._largest_class  # holds enough images of other classes at any offset
        order = torch.randperm(total, device=device, generator=generator)
        order = torch.cat([order, order[: window - 1]])
        offsets = torch.randint(total, (len(images),), device=device, generator=generator)
        candidates = order.unfold(0, window, 1)[offsets]
        is_other = self.classes[order].unfold(0, window, 1)[offsets] != labels
        columns = is_other.cumsum(1, dtype=torch.int32) - 1
        # Candidates of the image's own class or beyond the last negative go to an extra column, which is cut off.
        columns = torch.where(is_other & (columns < self.negatives), columns, self.negatives)
        negatives = candidates.new_empty(len(images), self.negatives + 1)
        return negatives.scatter_(1, columns.long(), candidates)[:, :-1]

    @torch.no_grad()
    def _log_z(self, student_embedding: Tensor, teacher_embedding: Tensor, index: Tensor) -> Tensor:
        if self.normaliser == "first" and not self._normalised:
            self._normalised = not bool(self.log_z.isnan().any())  # waits for the device, so it is asked only once
        if self.normaliser == "first" and self._normalised:
            return self.log_z
        sides = ((student_embedding, self.teacher_bank), (teacher_embedding, self.student_bank))
        log_z = torch.stack([losses.log_normaliser(*side, index, self.temperature) for side in sides])
        # The first process has the step's first micro-batch, which a single process would use.
        self.log_z.copy_(all_gather(log_z[None])[0] if self.normaliser == "first" else log_z)
        return self.log_z

    @torch.no_grad()
    def _update(self, bank: Tensor, images: Tensor, embeddings: Tensor) -> None:
        bank[images] = F.normalize(self.momentum * bank[images] + (1 - self.momentum) * embeddings)
