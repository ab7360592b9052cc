"""The settings of optimisers and of the learning rate over the epochs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd_bench.config.base import NonNegative, Positive, Settings, added_field


class SGD(Settings):
    """Stochastic gradient descent (``torch.optim.SGD``), weight decay on all parameters as in the published recipes."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Settings):
    """``torch.optim.AdamW``."""

    name: Literal["adamw"]
    lr: Positive = 1e-3
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    weight_decay: NonNegative = 0.05


class Lamb(Settings):
    """LAMB (You et al., 2020) as timm has it, with the gradient of all parameters clipped to norm 1.

    Biases and the parameters of norms have no weight decay, as in timm's recipes.
    """

    name: Literal["lamb"]
    lr: Positive = 5e-3
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.02


Optimizer = Annotated[SGD | AdamW | Lamb, Field(discriminator="name")]


class StepSchedule(Settings):
    """The learning rate times ``gamma`` after each milestone.

    Attributes:
        milestones: Epochs after which it drops: whole numbers, or fractions of all epochs (0.625 of 240 is 150).
        gamma: Factor of each drop.
        warmup_epochs: Epochs of linear increase at the start.
    """

    name: Literal["step"] = "step"
    milestones: tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


class CosineSchedule(Settings):
    """Half a cosine from the learning rate to ``final`` times it.

    Attributes:
        final: Share of the learning rate that the cosine ends at, one epoch after the last.
        warmup_epochs: Epochs of linear increase at the start.
        warmup_lr: Learning rate of the first of them; None for an equal step below that of the second.
        whole: Whether the cosine is one over all epochs, whose beginning the warm-up hides, as timm's is; otherwise it
            begins after the warm-up.
        inside: Whether it is one epoch ahead on a way that is one epoch longer, as the code of IKL-AT has it, so that
            neither its beginning nor its end is reached.
    """

    name: Literal["cosine"]
    final: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative | None = added_field()
    whole: bool = added_field(False)
    inside: bool = added_field(False)


class ConstantSchedule(Settings):
    """The learning rate as it is."""

    name: Literal["constant"]
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


Schedule = Annotated[StepSchedule | CosineSchedule | ConstantSchedule, Field(discriminator="name")]
