"""The base class of the methods of adversarial training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method
from kd_bench.types import NOTHING, Batch, Needs, Outputs


class AdversarialMethod(Method):
    """Trains one network on natural and perturbed images; there is no teacher.

    ``forward`` gets the network's outputs for the perturbed images as ``student`` and those for the natural images as
    ``teacher``. Both come from the same network in the same state, and the gradient goes to both. A subclass writes
    ``family`` and ``needs_teacher`` as literals, as every method does.

    Attributes:
        required_settings: Names of the trial's ``adversarial`` settings that must be on.
    """

    family = "adversarial"
    needs_teacher = False
    needs = Needs(teacher=NOTHING)
    required_settings: ClassVar[tuple[str, ...]] = ()

    def inner_loss(self, natural: Tensor, adversarial: Tensor, batch: Batch) -> Tensor:
        """Returns the loss that the perturbation maximises; by default KL(softmax(n) || softmax(a)), as in TRADES.

        Args:
            natural: (B, K) logits of the natural images, without gradient.
            adversarial: (B, K) logits of the perturbed images; the gradient goes to them.
            batch: The images.

        Returns:
            A scalar, a sum or mean over images in which each image's summand depends on that image only.
        """
        return losses.trades(natural, adversarial)


def require_natural(teacher: Outputs | None) -> Outputs:
    """Returns the network's outputs for the natural images.

    Raises:
        ValueError: If they are None, because the trainer did not perturb images.
    """
    if teacher is None:
        raise ValueError("a method of adversarial training needs the outputs for the natural images")
    return teacher
