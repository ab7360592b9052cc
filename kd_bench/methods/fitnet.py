"""FitNets: hints from the teacher's feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_bench import losses
from kd_bench.methods._connectors import Regressor
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError


class FitNet(Method):
    """FitNet: regression of the teacher's feature map of one stage from the student's.

    ce_weight * CE + hint_weight * MSE between the teacher's map and the student's after a convolution, batch norm and
    ReLU. Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), eq. 3.

    The paper first trains on the hint alone and then on the labels. The code behind the published CIFAR-100 numbers
    trains on both at once, and so does this method.

    Args:
        hint_weight: Weight of the mean squared error.
        hint_stage: Index of the stage that is compared, in both networks; 0 is the stem.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(
        self, pair: Pair, *, hint_weight: Weight = 100.0, hint_stage: Count = 2, ce_weight: NonNegative = 1.0
    ) -> None:
        super().__init__(pair)
        self.hint_weight, self.hint_stage, self.ce_weight = hint_weight, hint_stage, ce_weight
        assert pair.teacher is not None
        for name, shapes in ((pair.student_name, pair.student), (pair.teacher_name, pair.teacher)):
            last = len(shapes.stages) - 1
            if hint_stage > last:
                raise UserError(f"fitnet: hint_stage = {hint_stage}, but {name} has the stages 0 to {last}")
        self.regressor = Regressor(pair.student.stages[hint_stage], pair.teacher.stages[hint_stage])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "hint"."""
        hint = losses.at_least_float32(require_teacher(teacher).stages[self.hint_stage].detach())
        prediction = losses.at_least_float32(self.regressor(student.stages[self.hint_stage]))
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "hint": self.hint_weight * F.mse_loss(prediction, hint),
        }
