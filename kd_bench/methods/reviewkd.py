"""ReviewKD: distillation via knowledge review."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import Fusion, Map, embedding
from kd_bench.methods.base import Method, require_teacher, warmup_factor
from kd_bench.methods.parameters import Count, NonNegative, PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class ReviewKD(Method):
    """Knowledge review: each stage of the teacher is matched by the student's same stage fused with its deeper stages.

    ce_weight * CE + warm-up * review_weight * sum over stages of the hierarchical context loss. Chen et al.,
    "Distilling Knowledge via Knowledge Review" (2021), section 3.2 and 3.3. All stages except the stems are compared,
    and the pooled embeddings as the deepest stage; stages are matched from the deepest. A fusion has as many inner
    channels as the student's embedding, at most ``max_mid_channels``.

    The published CIFAR-100 code compares the student's stages after the activation with the teacher's before it; the
    ImageNet code compares both before it. The published code counts epochs from 0 in the warm-up, so nothing is
    distilled in the first epoch; other code counts from 1. The published weights on CIFAR-100 depend on the pair, see
    the recipes.

    Args:
        review_weight: Weight of the review.
        warmup_epochs: Epochs over which the review grows linearly to its full weight; 0 for no warm-up.
        first_epoch: Number of the first epoch in the warm-up.
        student_features: The student's features that are fused: "stages", after the activation, or "preacts".
        teacher_features: The teacher's features that are matched: "preacts", as published, or "stages", which every
            network has.
        max_mid_channels: Upper limit of the fusions' inner channels.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages", "pooled"}), teacher=frozenset({"preacts", "pooled"}))

    @classmethod
    def needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """Asks for pre-activations only if ``student_features`` or ``teacher_features`` are "preacts"."""
        return Needs(
            student=frozenset({"logits", hyperparameters["student_features"], "pooled"}),
            teacher=frozenset({hyperparameters["teacher_features"], "pooled"}),
        )

    def __init__(
        self,
        pair: Pair,
        *,
        review_weight: Weight = 1.0,
        warmup_epochs: Count = 20,
        first_epoch: Literal[0, 1] = 0,
        student_features: Literal["stages", "preacts"] = "stages",
        teacher_features: Literal["preacts", "stages"] = "preacts",
        max_mid_channels: PositiveCount = 512,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.review_weight, self.ce_weight = review_weight, ce_weight
        self.warmup_epochs, self.first_epoch = warmup_epochs, first_epoch
        self.student_features, self.teacher_features = student_features, teacher_features
        self.needs = self.needs_with({"student_features": student_features, "teacher_features": teacher_features})
        assert pair.teacher is not None
        student_levels = _levels(getattr(pair.student, student_features), pair.student.pooled)
        teacher_levels = _levels(getattr(pair.teacher, teacher_features), pair.teacher.pooled)
        self.stages = min(len(student_levels), len(teacher_levels))
        mid_chs = min(max_mid_channels, student_levels[-1][0])
        self.fusions = nn.ModuleList(
            Fusion(student[0], mid_chs, teacher[0], (teacher[1], teacher[2]), deepest=index == self.stages - 1)
            for index, (student, teacher) in enumerate(
                zip(student_levels[-self.stages :], teacher_levels[-self.stages :], strict=True)
            )
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "review"."""
        teacher = require_teacher(teacher)
        student_maps = [*getattr(student, self.student_features)[1:], embedding(student)[:, :, None, None]]
        teacher_maps = [*getattr(teacher, self.teacher_features)[1:], embedding(teacher)[:, :, None, None]]
        factor = batch.epoch_value(lambda epoch: warmup_factor(epoch - 1 + self.first_epoch, self.warmup_epochs))
        terms, deeper = [], None
        for level in range(1, self.stages + 1):  # from the deepest
            restored, deeper = self.fusions[-level](student_maps[-level], deeper)
            terms.append(losses.hierarchical_context(restored, teacher_maps[-level].detach()))
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "review": factor * self.review_weight * torch.stack(terms).sum(),
        }


def _levels(stages: tuple[Map, ...], pooled: Map | None) -> list[Map]:
    assert pooled is not None
    return [*stages[1:], (*pooled, 1, 1)]
