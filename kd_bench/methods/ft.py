"""FT: factor transfer from a paraphraser of the teacher's features."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._maps import paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Positive, Weight
from kd_bench.types import NOTHING, Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError

#: Slope of the leaky ReLUs for negative values.
_SLOPE = 0.1


class FT(Method):
    """Factor transfer: an autoencoder of the teacher's last map is trained first, and its code is the target.

    In the preparation MSE(decoder(paraphraser(F_t)), F_t), which trains no student; in the student's own epochs
    ce_weight * CE + factor_weight * the mean of |u(translator(F_s)) - u(paraphraser(F_t))|. Kim et al., "Paraphrasing
    Complex Network: Network Compression via Factor Transfer" (2018). u(F) is the mean over the channels of the squares
    of a map, divided by its L2 norm, as in RepDistiller; the paper divides the factors by their norms. F is the last
    feature map. The paraphraser is three 3x3 convolutions to half of the channels, each followed by a leaky ReLU, and
    is frozen after the preparation. The decoder mirrors it. The translator has the paraphraser's form with batch norms
    and is trained with the student. If sizes differ, the larger factor is averaged to the smaller one's size.

    200 is the weight in RepDistiller's script, and 500 the paper's; its README does not say with which of them its
    numbers were made.

    Args:
        factor_weight: Weight of the factors.
        preparation_epochs: Epochs that train the paraphraser; 30 is published.
        preparation_lr: Their learning rate; None for the student's. RepDistiller has 0.01 for ResNet and WRN students,
            and the student's for others, which is 0.01, too, for MobileNet-V2 and ShuffleNet.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))
    preparation_needs = Needs(student=NOTHING, teacher=frozenset({"stages"}))

    def __init__(
        self,
        pair: Pair,
        *,
        factor_weight: Weight = 200.0,
        preparation_epochs: Count = 30,
        preparation_lr: Positive | None = 0.01,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.factor_weight, self.ce_weight = factor_weight, ce_weight
        shapes = paired_shapes("ft", pair)[-1]
        for name, (_, height, width) in zip((pair.student_name, pair.teacher_name), shapes, strict=True):
            if height * width == 1:
                raise UserError(
                    f"ft: the last feature map of {name} has a single pixel for these images, and the attention map of "
                    "one pixel is always 1; choose larger images or a network with larger maps"
                )
        student_channels, teacher_channels = (shape[0] for shape in shapes)
        factors = max(1, teacher_channels // 2)
        widths = (teacher_channels, teacher_channels, factors, factors)
        self.paraphraser = _convolutions(nn.Conv2d, widths)
        self.decoder = _convolutions(nn.ConvTranspose2d, widths[::-1])
        self.translator = _convolutions(nn.Conv2d, (student_channels, student_channels, factors, factors), norm=True)

    def prepare(self, student: Outputs | None, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "reconstruction"."""
        maps = require_teacher(teacher).stages[-1].detach()
        reconstruction = losses.at_least_float32(self.decoder(self.paraphraser(maps)))
        return {"reconstruction": F.mse_loss(reconstruction, losses.at_least_float32(maps))}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "factor"."""
        with torch.no_grad():  # so that neither gradients nor weight decay change the paraphraser
            target = self.paraphraser(require_teacher(teacher).stages[-1])
        factor = losses.ft(self.translator(student.stages[-1]), target)
        return {"ce": self.ce_weight * self.label_loss(student, batch), "factor": self.factor_weight * factor}


def _convolutions(conv: Callable[..., nn.Module], widths: tuple[int, ...], norm: bool = False) -> nn.Sequential:
    """Returns 3x3 convolutions, each followed by a leaky ReLU, with or without a batch norm in between.

    Args:
        conv: ``nn.Conv2d`` or ``nn.ConvTranspose2d``.
        widths: Channels of the input and after each convolution.
        norm: Whether there are batch norms.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [conv(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)
