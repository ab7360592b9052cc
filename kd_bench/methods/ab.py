"""AB: distillation of activation boundaries, before the student's own epochs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import Map, Regressor
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Weight
from kd_bench.types import NOTHING, Batch, Needs, Outputs, Pair


class AB(Method):
    """Activation boundaries: which neurons are active is learned first, and then the labels alone.

    In the preparation boundary_weight * sum over L stages of 2^-(L - 1 - l) * D(c(F_s), F_t), the deepest being l =
    L - 1; in the student's own epochs ce_weight * CE. Heo et al., "Knowledge Transfer via Distillation of Activation
    Boundaries Formed by Hidden Neurons" (2019), eq. 5. F is the pre-activation of a stage. D is the square of what the
    student lacks to be on the teacher's side of 0 by a margin, summed over channels and pixels, mean over the batch. c
    is nothing if the shapes agree, and otherwise a convolution to the teacher's shape with batch norm. All stages
    except the stems are compared, matched from the deepest.

    The preparation trains the connectors and the student except its classifier, with the trial's learning rate. All
    batch norms that it runs are trained and normalise by the batch; in RepDistiller the last one of a wide ResNet keeps
    its initial statistics. The teacher does not run afterwards.

    Args:
        preparation_epochs: Epochs before the student's own; 30 is published.
        boundary_weight: Weight of the boundaries; 3/1000 is published.
        margin: Margin of the boundaries.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(teacher=NOTHING)
    preparation_needs = Needs(student=frozenset({"preacts"}), teacher=frozenset({"preacts"}))

    def __init__(
        self,
        pair: Pair,
        *,
        preparation_epochs: Count = 30,
        boundary_weight: Weight = 3e-3,
        margin: NonNegative = 1.0,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.boundary_weight, self.margin, self.ce_weight = boundary_weight, margin, ce_weight
        self.connectors = nn.ModuleList(_connector(*shapes) for shapes in paired_shapes("ab", pair, of="preacts"))

    def prepare(self, student: Outputs | None, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "boundary"."""
        assert student is not None
        maps = paired(student.preacts, require_teacher(teacher).preacts)
        terms = []
        for index, (connector, (student_map, teacher_map)) in enumerate(zip(self.connectors, maps, strict=True)):
            loss = losses.ab(connector(student_map), teacher_map.detach(), self.margin)
            terms.append(loss / 2 ** (len(maps) - 1 - index))
        return {"boundary": self.boundary_weight * torch.stack(terms).sum()}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "ce"."""
        return {"ce": self.ce_weight * self.label_loss(student, batch)}


def _connector(student: Map, teacher: Map) -> nn.Module:
    return nn.Identity() if student == teacher else Regressor(student, teacher, relu=False)
