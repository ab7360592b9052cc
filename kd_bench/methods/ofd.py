"""The overhaul of feature distillation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.connectors import Connector
from kd_bench.methods.parameters import NonNegative
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError


class OFD(Method):
    """Overhaul of feature distillation: pre-activations of all stages, as far as the activation would pass them on.

    ce_weight * CE + feature_weight * sum over L stages of 2^-(L - 1 - l) * partial L2, the deepest being l = L - 1.
    Heo et al., "A Comprehensive Overhaul of Feature Distillation" (2019), eq. 2 to 4: a teacher's value counts as it is
    where it is positive, and elsewhere only against a student above it, as the margin of its channel at least. Margins
    follow in closed form from the teacher's batch norms. All stages but the stems take part, the deepest of both
    networks against one another; where sizes differ the teacher's map is averaged to the student's.

    In the published code the teacher's batch norms go by the batch's statistics, and its author defends that as the
    better choice; there it also lets them drift. Here "batch" leaves the teacher's buffers as they are, and "running"
    is the usual frozen teacher.

    Args:
        feature_weight: Weight of the features; 1e-3 is published for CIFAR-100, 1e-4 for ImageNet.
        teacher_batch_norm: Statistics that the teacher's batch norms go by, "batch" or "running".
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "preacts"}), teacher=frozenset({"preacts"}))

    def __init__(
        self,
        pair: Pair,
        *,
        feature_weight: NonNegative = 1e-3,
        teacher_batch_norm: Literal["batch", "running"] = "batch",
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.feature_weight, self.ce_weight = feature_weight, ce_weight
        self.teacher_batch_norm = teacher_batch_norm
        assert pair.teacher is not None
        ours, theirs = pair.student.preacts[1:], pair.teacher.preacts[1:]
        self.stages = min(len(ours), len(theirs))
        self.connectors = nn.ModuleList(
            Connector(student[0], teacher[0])
            for student, teacher in zip(ours[-self.stages :], theirs[-self.stages :], strict=True)
        )
        norms = pair.teacher_norms[len(pair.teacher_norms) - self.stages :]
        for index, norm in enumerate(norms):
            if norm is None:
                stage = len(theirs) - self.stages + index + 1
                raise UserError(
                    f"ofd: the pre-activation of stage {stage} of {pair.teacher_name} is not put out by a batch norm, "
                    "from which the margins follow; take another teacher"
                )
            # They follow from the teacher, so they are not part of what is checkpointed.
            self.register_buffer(f"margin{index}", losses.ofd_margin(*norm), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Terms "ce" and "feature"."""
        terms = []
        pairs = zip(student.preacts[-self.stages :], require_teacher(teacher).preacts[-self.stages :], strict=True)
        for index, (ours, theirs) in enumerate(pairs):
            wanted = F.adaptive_avg_pool2d(theirs.detach(), (ours.shape[2], ours.shape[3]))
            loss = losses.partial_l2(self.connectors[index](ours), wanted, self.get_buffer(f"margin{index}"))
            terms.append(loss / 2 ** (self.stages - 1 - index))
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "feature": self.feature_weight * torch.stack(terms).sum(),
        }
