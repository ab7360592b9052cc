"""FSP: the flow of the solution procedure, before the student's own epochs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Weight
from kd_bench.types import NOTHING, Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError


class FSP(Method):
    """Flow of the solution procedure: how channels of neighbouring stages go together is learned before the labels.

    In the preparation flow_weight * sum over neighbouring stages of MSE(G_s, G_t); in the student's own epochs
    ce_weight * CE. Yim et al., "A Gift from Knowledge Distillation" (2017), eq. 1 and 2. G is the mean over the pixels
    of the products of a channel of one stage with a channel of the next; within a network the larger map is averaged to
    the smaller one's size. All stages are compared, stems included, so that both networks need as many stages with as
    many channels. There are no extra parameters.

    The preparation trains the student except its classifier, with the trial's learning rate and the weight 1; the
    weight 50 in RepDistiller's script is not used. The teacher does not run afterwards.

    Args:
        preparation_epochs: Epochs before the student's own; 30 is published.
        flow_weight: Weight of the flow matrices.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(teacher=NOTHING)
    preparation_needs = Needs(student=frozenset({"stages"}), teacher=frozenset({"stages"}))

    def __init__(
        self,
        pair: Pair,
        *,
        preparation_epochs: Count = 30,
        flow_weight: Weight = 1.0,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.flow_weight, self.ce_weight = flow_weight, ce_weight
        paired_shapes("fsp", pair)
        assert pair.teacher is not None
        student_channels, teacher_channels = (
            [stage[0] for stage in shapes.stages] for shapes in (pair.student, pair.teacher)
        )
        if student_channels != teacher_channels:
            raise UserError(
                f"fsp: compares stages with equal channels, but those of {pair.student_name} have "
                f"{', '.join(map(str, student_channels))} channels and those of {pair.teacher_name} "
                f"{', '.join(map(str, teacher_channels))}; "
                "choose two networks of one family and width, e.g. resnet56 and resnet20"
            )

    def prepare(self, student: Outputs | None, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "flow"."""
        assert student is not None
        teacher_stages = [stage.detach() for stage in require_teacher(teacher).stages]
        terms = [losses.fsp(*pairs) for pairs in zip(pairwise(student.stages), pairwise(teacher_stages), strict=True)]
        return {"flow": self.flow_weight * torch.stack(terms).sum()}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "ce"."""
        return {"ce": self.ce_weight * self.label_loss(student, batch)}
