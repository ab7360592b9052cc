"""Training without a teacher."""

from __future__ import annotations

from torch import Tensor

from kd_bench.methods.base import Method
from kd_bench.types import NOTHING, Batch, Needs, Outputs


class Alone(Method):
    """The student alone: cross-entropy with the labels, no teacher."""

    family = "baseline"
    needs_teacher = False
    needs = Needs(teacher=NOTHING)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "ce"."""
        return {"ce": self.label_loss(student, batch)}
