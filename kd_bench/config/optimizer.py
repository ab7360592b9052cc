"""The settings of optimisers and learning rate schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd_bench.config.base import Settings, added_field
from kd_bench.config.limits import Epochs, NonNegative, Positive, WarmupEpochs
from kd_bench.config.numbers import FractionBelowOne, OpenFraction, PositiveFraction


class SGD(Settings):
    """Stochastic gradient descent (``torch.optim.SGD``), weight decay on all parameters as in the published recipes.

    Attributes:
        name: The optimiser.
        lr: Learning rate, which the schedule multiplies.
        momentum: Momentum; 0 for none.
        weight_decay: Weight decay, added to the gradient.
        nesterov: Whether the momentum is Nesterov's, which needs a ``momentum`` above 0.
    """

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: FractionBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Settings):
    """Adam with decoupled weight decay (``torch.optim.AdamW``) on all parameters.

    Attributes:
        name: The optimiser.
        lr: Learning rate, which the schedule multiplies.
        beta1: Decay of the average of the gradients.
        beta2: Decay of the average of the squared gradients.
        weight_decay: Weight decay, in each step multiplied by the learning rate.
    """

    name: Literal["adamw"]
    lr: Positive = 1e-3
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.999
    weight_decay: NonNegative = 0.05


class Lamb(Settings):
    """timm's LAMB (You et al., 2020), with the gradient of all parameters clipped to norm 1.

    Biases and the parameters of norm layers have no weight decay, as in timm's recipes.

    Attributes:
        name: The optimiser.
        lr: Learning rate, which the schedule multiplies.
        beta1: Decay of the average of the gradients.
        beta2: Decay of the average of the squared gradients.
        eps: Number that is added to the denominator of an update.
        weight_decay: Weight decay, added to Adam's update before its length is adapted to the weights.
    """

    name: Literal["lamb"]
    lr: Positive = 5e-3
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.999
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.02


class DOT(Settings):
    """SGD with a momentum for the labels' loss and one for the distillation, for methods with a teacher.

    Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023. A step takes two backward passes. The labels' loss
    is the method's term "ce", and the distillation all of its other terms.

    Attributes:
        name: The optimiser.
        lr: Learning rate, which the schedule multiplies.
        momentum: Mean of the two momenta.
        delta: The momentum of the labels' loss is ``momentum - delta``, that of the distillation ``momentum + delta``.
            Published are 0.075 (CIFAR-100, Tiny-ImageNet) and 0.09 (ImageNet).
        weight_decay: Weight decay, added to the gradient of the labels' loss.
    """

    name: Literal["dot"]
    lr: Positive = 0.05
    momentum: OpenFraction = 0.9
    weight_decay: NonNegative = 5e-4
    delta: FractionBelowOne = 0.075

    @model_validator(mode="after")
    def _check_momenta(self) -> DOT:
        if self.delta > self.momentum:
            raise ValueError(f"delta must be at most momentum, which is {self.momentum:g}; it is {self.delta:g}")
        if self.momentum + self.delta >= 1:
            raise ValueError(
                f"momentum + delta, the momentum of the distillation, must be below 1; it is "
                f"{self.momentum:g} + {self.delta:g}"
            )
        return self


Optimizer = Annotated[SGD | AdamW | Lamb | DOT, Field(discriminator="name")]


class StepSchedule(Settings):
    """Multiplies the learning rate by ``gamma`` after each milestone, as ``MultiStepLR`` of PyTorch.

    Attributes:
        name: The schedule.
        milestones: Epochs after which the rate drops: whole numbers, or fractions of all epochs, so that the schedule
            fits any number of ``epochs``. 0.625 of 240 is 150: the 151st epoch is the first with the lower rate.
        gamma: Factor of a drop.
        warmup_epochs: Epochs of linear increase at the start; the rate of epoch e of w, counted from 1, is
            ``lr * e / (w + 1)``. 0 for none.
    """

    name: Literal["step"] = "step"
    milestones: tuple[Epochs | OpenFraction, ...] = (0.625, 0.75, 0.875)
    gamma: PositiveFraction = 0.1
    warmup_epochs: WarmupEpochs = 0


class CosineSchedule(Settings):
    """Half a cosine from the learning rate to ``final`` times it.

    Attributes:
        name: The schedule.
        final: Value of the cosine one epoch after the last, as a fraction of the learning rate.
        warmup_epochs: Epochs of linear increase at the start; without ``warmup_lr``, the rate of epoch e of w, counted
            from 1, is ``lr * e / (w + 1)``. 0 for none.
        warmup_lr: Learning rate of the first epoch of the warm-up; None for an equal step below that of the second.
        whole: Whether the cosine starts at the first epoch, and the warm-up replaces its beginning, as in timm.
            Otherwise it starts after the warm-up.
        inside: Whether the cosine is one epoch longer and starts one epoch ahead, as in the code of IKL-AT, so that
            neither its start nor its end is reached.
    """

    name: Literal["cosine"]
    final: FractionBelowOne = 0.0
    warmup_epochs: WarmupEpochs = 0
    warmup_lr: NonNegative | None = added_field()
    whole: bool = added_field(False)
    inside: bool = added_field(False)


class ConstantSchedule(Settings):
    """A constant learning rate.

    Attributes:
        name: The schedule.
        warmup_epochs: Epochs of linear increase at the start; the rate of epoch e of w, counted from 1, is
            ``lr * e / (w + 1)``. 0 for none.
    """

    name: Literal["constant"]
    warmup_epochs: WarmupEpochs = 0


Schedule = Annotated[StepSchedule | CosineSchedule | ConstantSchedule, Field(discriminator="name")]


def in_epochs(schedule: Schedule, epochs: int) -> Schedule:
    """Returns the schedule with whole epochs for fractions of all epochs, so that equal ones have equal settings."""
    if not isinstance(schedule, StepSchedule):
        return schedule
    milestones = {value if isinstance(value, int) else max(1, round(value * epochs)) for value in schedule.milestones}
    return schedule.model_copy(update={"milestones": tuple(sorted(milestones))})
