"""CAT-KD: class attention transfer."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import class_maps
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class CATKD(Method):
    """Class attention transfer: mean squared error between the class activation maps of student and teacher.

    ce_weight * CE + cat_weight * the mean of (n(M_s) - n(M_t))^2. Guo et al., "Class Attention Transfer Based Knowledge
    Distillation" (2023). M is the classifier applied to each pixel of the last feature map, averaged to resolution x
    resolution pixels; its average over the pixels is the logits. n divides each map of an image and a class by its L2
    norm, or does nothing.

    The paper changes the classifier into such maps without changing the network. The released code leaves the
    teacher's bias out, and its students have none. Here the teacher's maps have no bias either, unless ``teacher_bias``
    is true; the student keeps its own, which takes part in its maps.

    Weight, resolution and normalisation are published for each pair; the defaults are those of ResNet32x4 to both
    ShuffleNets. Without normalisation the published weights are between 0.7 and 15.

    Args:
        cat_weight: Weight of the maps.
        resolution: Pixels per edge of the maps that are compared.
        normalise: Whether each map is divided by its L2 norm.
        teacher_bias: Whether the teacher's maps contain the bias of its classifier.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "class_maps"}), teacher=frozenset({"class_maps"}))

    def __init__(
        self,
        pair: Pair,
        *,
        cat_weight: Weight = 600.0,
        resolution: PositiveCount = 4,
        normalise: bool = True,
        teacher_bias: bool = False,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.cat_weight, self.ce_weight = cat_weight, ce_weight
        self.resolution, self.normalise, self.teacher_bias = resolution, normalise, teacher_bias
        assert pair.teacher_classifier is not None
        # Not checkpointed, because it follows from the teacher.
        self.register_buffer("bias", pair.teacher_classifier[1].clone()[:, None, None], persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "cat"."""
        teacher_maps = class_maps(require_teacher(teacher)).detach()
        if not self.teacher_bias:
            teacher_maps = teacher_maps - self.get_buffer("bias")
        loss = losses.cat_kd(class_maps(student), teacher_maps, self.resolution, self.normalise)
        return {"ce": self.ce_weight * self.label_loss(student, batch), "cat": self.cat_weight * loss}
