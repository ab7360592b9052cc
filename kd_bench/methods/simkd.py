"""SimKD: the student reuses the teacher's classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.losses.maps import average_cells
from kd_bench.methods._maps import last_map
from kd_bench.methods.base import Method, Terms, require_teacher
from kd_bench.methods.parameters import PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class SimKD(Method):
    """SimKD: the student learns the teacher's last feature map, and uses the teacher's classifier.

    feature_weight * the mean of (r(F_s) - F_t)^2. Chen et al., "Knowledge Distillation with the Reused Teacher
    Classifier" (2022). F are the last feature maps; the larger one is averaged to the smaller one's size, the student's
    before r. r is trained with the student: three convolutions (1x1, 3x3, 1x1) without bias, each with batch norm and
    ReLU, from the student's channels to the teacher's, with the teacher's divided by ``factor`` in between. The labels
    are not used.

    The student's own classifier is removed. Its logits are those of the teacher's classifier, which is not trained, for
    the average of r(F_s) over the pixels. So r and the classifier stay in the student: they are evaluated, saved,
    exported and counted. A teacher whose classifier is not linear in the average of its last map is refused.

    Published numbers are those of the best epoch, and of students with these layers.

    Args:
        feature_weight: Weight of the mean squared error.
        factor: The teacher's channels divided by those inside r.
    """

    family = "features"
    keeps_layers = True
    needs = Needs(student=frozenset({"features"}), teacher=frozenset({"features"}))

    def __init__(self, pair: Pair, *, feature_weight: Weight = 1.0, factor: PositiveCount = 2) -> None:
        super().__init__(pair)
        self.feature_weight = feature_weight
        if pair.teacher is None or pair.student.features is None or pair.teacher.features is None:
            raise ValueError("simkd needs the last feature maps of both networks")
        assert pair.teacher_classifier is not None
        self.inference_head = _ReusedClassifier(
            pair.student.features, pair.teacher.features, factor, *pair.teacher_classifier
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "feature", and the logits of the teacher's classifier for the training accuracy."""
        head = self.inference_head
        assert isinstance(head, _ReusedClassifier)
        projected = head.project(last_map(student))
        student_map, teacher_map = losses.equal_sizes(projected, last_map(require_teacher(teacher)).detach())
        return Terms(
            {"feature": self.feature_weight * F.mse_loss(student_map, teacher_map)}, head.classify(projected.detach())
        )


class _ReusedClassifier(nn.Module):
    """Maps a student's last feature map to the teacher's, and then to logits by the teacher's classifier.

    Args:
        student, teacher: (C, H, W) of the maps.
        factor: The teacher's channels divided by those inside the projector, which are at least one.
        weight, bias: The teacher's classifier, (K, C) and (K,). They are copied and not trained.
    """

    def __init__(
        self, student: tuple[int, ...], teacher: tuple[int, ...], factor: int, weight: Tensor, bias: Tensor
    ) -> None:
        super().__init__()
        in_chs, out_chs = student[0], teacher[0]
        mid_chs = max(1, out_chs // factor)
        self.size = min(student[1], teacher[1]), min(student[2], teacher[2])
        self.projector = nn.Sequential(
            *_layer(in_chs, mid_chs, 1), *_layer(mid_chs, mid_chs, 3), *_layer(mid_chs, out_chs, 1)
        )
        self.classifier = nn.Linear(out_chs, len(bias))
        # Frozen parameters and not buffers, so that they are counted with the student's.
        self.classifier.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.classifier.bias = nn.Parameter(bias.clone(), requires_grad=False)

    def project(self, features: Tensor) -> Tensor:
        """Maps the student's (B, C, H, W) to the teacher's channels, and to the smaller of both sizes."""
        if features.shape[2:] != self.size:
            features = average_cells(features, self.size)
        projected: Tensor = self.projector(features)
        return projected

    def classify(self, projected: Tensor) -> Tensor:
        """Maps (B, C, H, W) with the teacher's channels to (B, K) logits."""
        logits: Tensor = self.classifier(projected.mean((2, 3)))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Maps the student's (B, C, H, W) to (B, K) logits."""
        return self.classify(self.project(features))


def _layer(in_chs: int, out_chs: int, kernel: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_chs, out_chs, kernel, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_chs), nn.ReLU()
