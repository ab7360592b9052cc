"""OFD: the overhaul of feature distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import Connector
from kd_bench.methods._maps import paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Weight
from kd_bench.types import Batch, Needs, Output, Outputs, Pair
from kd_bench.utils.errors import UserError


class OFD(Method):
    """Overhaul of feature distillation: partial L2 distance of the pre-activations of all stages.

    ce_weight * CE + feature_weight * sum over L stages of 2^-(L - 1 - l) * partial L2, the deepest being l = L - 1.
    Heo et al., "A Comprehensive Overhaul of Feature Distillation" (2019), eq. 2 to 4. The teacher's value is raised to
    the margin of its channel. Differences count where the teacher's value is positive, and elsewhere only if the
    student's is above it. Margins follow in closed form from the teacher's batch norms. All stages except the stems are
    compared, matched from the deepest; if sizes differ, the teacher's map is averaged to the student's size.

    A pre-activation is a stage before its last ReLU. Of a ShuffleNet-V2 student, mdistiller reads something else: the
    channels that the last unit passes on are after ReLU, and only the output of its last batch norm is before it.
    ``student_preacts`` "published" does the same. For all other students, both values give the same loss.

    In the published code the teacher's batch norms use the statistics of the batch, which its author defends as the
    better choice, and their running statistics drift. Here "batch" does not change the teacher's buffers, and "running"
    is the usual frozen teacher.

    Args:
        feature_weight: Weight of the features; 1e-3 is published for CIFAR-100, 1e-4 for ImageNet.
        student_preacts: Pre-activations of a ShuffleNet-V2 student, "before_relu" or "published".
        teacher_batch_norm: Statistics that the teacher's batch norms use, "batch" or "running".
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    added_hyperparameters = ("student_preacts",)
    needs = Needs(student=frozenset({"logits", "preacts"}), teacher=frozenset({"preacts"}))

    @classmethod
    def needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """Asks for the student's published pre-activations if ``student_preacts`` is "published"."""
        published = hyperparameters["student_preacts"] == "published"
        preacts: Output = "published_preacts" if published else "preacts"
        return Needs(student=frozenset({"logits", preacts}), teacher=cls.needs.teacher)

    def __init__(
        self,
        pair: Pair,
        *,
        feature_weight: Weight = 1e-3,
        student_preacts: Literal["before_relu", "published"] = "before_relu",
        teacher_batch_norm: Literal["batch", "running"] = "batch",
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.feature_weight, self.ce_weight = feature_weight, ce_weight
        self.teacher_batch_norm = teacher_batch_norm
        self.needs = self.needs_with({"student_preacts": student_preacts})
        shapes = paired_shapes("ofd", pair, of="preacts")
        self.stages = len(shapes)
        self.connectors = nn.ModuleList(
            Connector(student_shape[0], teacher_shape[0]) for student_shape, teacher_shape in shapes
        )
        norms = pair.teacher_norms[len(pair.teacher_norms) - self.stages :]
        for index, norm in enumerate(norms):
            if norm is None:
                stage = len(pair.teacher_norms) - self.stages + index
                raise UserError(
                    f"ofd: the pre-activation of stage {stage} of {pair.teacher_name} is not the output of a batch "
                    "norm, which the margins need; choose another teacher"
                )
            # Not checkpointed, because they follow from the teacher.
            self.register_buffer(f"margin{index}", losses.ofd_margin(*norm), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "feature"."""
        terms = []
        pairs = zip(student.preacts[-self.stages :], require_teacher(teacher).preacts[-self.stages :], strict=True)
        for index, (student_map, teacher_map) in enumerate(pairs):
            target = F.adaptive_avg_pool2d(teacher_map.detach(), (student_map.shape[2], student_map.shape[3]))
            loss = losses.partial_l2(self.connectors[index](student_map), target, self.get_buffer(f"margin{index}"))
            terms.append(loss / 2 ** (self.stages - 1 - index))
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "feature": self.feature_weight * torch.stack(terms).sum(),
        }
