"""What every method of adversarial training is."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method
from kd_bench.types import NOTHING, Batch, Needs, Outputs


class AdversarialMethod(Method):
    """Trains one network on images and on perturbed images; there is no teacher.

    ``forward`` gets what the network puts out for the perturbed images as ``student`` and for the images as they are as
    ``teacher``: the same network in the same state, and the gradient goes to both. ``family`` and ``needs_teacher``
    have to stand in the class itself, as literals, like those of any method.

    Attributes:
        demands: What must be switched on of a trial's ``adversarial`` settings, by their names.
    """

    family = "adversarial"
    needs_teacher = False
    needs = Needs(teacher=NOTHING)
    demands: ClassVar[tuple[str, ...]] = ()

    def inner_loss(self, natural: Tensor, adversarial: Tensor, batch: Batch) -> Tensor:
        """What the perturbation of an image makes large; by default KL(softmax(n) || softmax(a)), as in TRADES.

        Args:
            natural: (B, K) logits of the images, without gradient.
            adversarial: (B, K) logits of the perturbed images, to which the gradient goes.
            batch: The images.

        Returns:
            A scalar in which each image's part depends on that image alone.
        """
        return losses.trades(natural, adversarial)


def natural_of(teacher: Outputs | None) -> Outputs:
    """What the network puts out for the images as they are.

    Raises:
        ValueError: If there is nothing: the method was run as one that knows no perturbed images.
    """
    if teacher is None:
        raise ValueError("a method of adversarial training needs the outputs of the images as they are")
    return teacher
