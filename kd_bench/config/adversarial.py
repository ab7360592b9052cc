"""The settings of adversarial training: how images are perturbed, and what else is done for robustness."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from kd_bench.config.base import NonEmpty, PerTrial, Settings, Sha256, Shared
from kd_bench.config.limits import AttackSteps, Epochs, NonNegative, Positive, PositivePixels
from kd_bench.config.numbers import OpenFraction

#: Steps of the inner maximisation in each quarter of the training, and their length divided by epsilon.
QUARTERS = ((2, 1.0), (3, 2 / 3), (4, 1 / 2), (5, 1 / 2))


def _number(value: Any) -> Any:
    """Converts text like ``8/255`` to a number, and returns anything else unchanged."""
    if isinstance(value, str) and "/" in value:
        numerator, _, denominator = value.partition("/")
        with suppress(ValueError, ZeroDivisionError):
            return float(numerator) / float(denominator)
    return value


#: A number above 0 that may be written as a fraction, e.g. ``8/255``.
Length = Annotated[Positive, BeforeValidator(_number)]


class WeightPerturbation(Settings):
    """Adversarial weight perturbation (Wu, Xia and Wang, 2020).

    Before each step every weight tensor is moved up the gradient of the loss by ``gamma`` times its norm. The gradient
    of the step is computed there, and the weights are restored before the step.

    Attributes:
        gamma: Length of the move divided by the norm of the tensor.
        from_epoch: First epoch, counted from 1, with the perturbation.
    """

    gamma: Positive = 0.005
    from_epoch: Epochs = 10


class EpochAverage(Settings):
    """Moving average of the weights and batch-norm statistics over the ends of epochs. The average is evaluated.

    Attributes:
        decay: Weight of the previous average at each epoch.
        from_epoch: Epoch, counted from 1, at whose end the average starts.
    """

    decay: OpenFraction = 0.9
    from_epoch: Epochs = 1


class SecondView(Settings):
    """A second view of every image of a batch, with its own crop and flip and with more augmentation.

    Cross-entropy and perturbation use both views. The other terms of the loss are those of the first view plus
    ``weight`` times those of the second.

    Attributes:
        weight: Weight of the second view's terms (gamma in the released code).
        autoaugment: Whether the second view has AutoAugment's CIFAR-10 policy.
        cutout: Side in pixels of the square that is blackened in the second view; None for none.
    """

    weight: NonNegative = 1.0
    autoaugment: bool = True
    cutout: PositivePixels | None = None


class Generated(Settings):
    """Generated images in addition to those of the data set.

    An epoch has as many images as the training set. Of each batch, ``share`` are drawn from the generated images with
    replacement, and the rest from the training set in a new order each epoch, as in the code of Wang et al. (2023).
    Images that are not compressed (``numpy.savez``) are read from the file when they are drawn, so the file may be
    larger than the memory.

    Attributes:
        path: An ``.npz`` with ``image``, (N, H, W, 3) uint8, and ``label``, (N,) integers; relative to the data folder
            or absolute.
        sha256: Checksum of the file. If a recipe has None, it is computed when the recipe is read.
        share: Fraction of a batch.
    """

    path: NonEmpty
    sha256: Sha256 | None = None
    share: OpenFraction = 0.7


class Adversarial(Settings):
    """How a network is trained on perturbed images. Lengths refer to images with values from 0 to 1.

    Attributes:
        eps: Largest perturbation, in ``norm``; may be written as a fraction, e.g. ``8/255``.
        norm: ``Linf`` for the largest change of any value, ``L2`` for the Euclidean length.
        steps: Steps of projected gradient ascent; left out with a ``schedule``.
        step_size: Length of a step, a number or a fraction; None for a quarter of the epoch's epsilon.
        schedule: ``released`` for 5 steps of half the epoch's epsilon, as in the released code of IKL-AT; ``intended``
            for what that code seems to intend: in the quarters of the training 2, 3, 4 and 5 steps of the epoch's
            epsilon, two thirds, half and half of it. None for ``steps`` and ``step_size``.
        ramp: Whether epsilon grows linearly, to its full size in the last epoch.
        start: Start of the ascent: the image (``none``), the image with normal noise of standard deviation 0.001
            (``gaussian``), or a uniformly random point within epsilon (``uniform``).
        inner: What the ascent maximises: the method's ``own`` loss, the ``kl`` divergence from the probabilities of the
            clean images, or the ``cross_entropy`` with the labels.
        weight_perturbation: Perturbation of the weights as well; None for none.
        average: Evaluates the average over epochs. With None the last epoch's network is evaluated, or the average over
            steps if the trial has ``ema``.
        second_view: A second view of each image; None for none.
        generated: Generated images; None for none.
    """

    eps: PerTrial[Length]
    norm: PerTrial[Literal["Linf", "L2"]] = "Linf"
    steps: PerTrial[AttackSteps | None] = None
    step_size: PerTrial[Length | None] = None
    schedule: PerTrial[Literal["released", "intended"] | None] = None
    ramp: PerTrial[bool] = False
    start: PerTrial[Literal["none", "gaussian", "uniform"]] = "gaussian"
    inner: PerTrial[Literal["own", "kl", "cross_entropy"]] = "own"
    weight_perturbation: PerTrial[WeightPerturbation | None] = None
    average: PerTrial[EpochAverage | None] = None
    second_view: Shared[SecondView | None] = None
    generated: Shared[Generated | None] = None

    @model_validator(mode="after")
    def _check_steps(self) -> Adversarial:
        if self.schedule is not None and (self.steps is not None or self.step_size is not None):
            raise ValueError("schedule sets steps and step_size, so these must be left out")
        if self.schedule is None and self.steps is None:
            raise ValueError("steps is missing; set steps or schedule")
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Adversarial:
        if self.norm == "Linf" and self.eps >= 1:
            raise ValueError(f"eps {self.eps:g} in Linf reaches all images, because pixels go from 0 to 1; "
                             "write 8/255, not 8")  # fmt: skip
        if self.step_size is not None and self.step_size > 2 * self.eps:
            raise ValueError(f"step_size {self.step_size:g} is more than twice eps, {self.eps:g}, so each step crosses "
                             "the whole ball; write 2/255, not 2")  # fmt: skip
        return self

    def perturbation(self, epoch: int, epochs: int) -> tuple[float, int, float]:
        """Returns epsilon, number of steps and step size in an epoch, counted from 0, of ``epochs``."""
        eps = self.eps * (epoch + 1) / epochs if self.ramp else self.eps
        if self.schedule is None:
            assert self.steps is not None
            return eps, self.steps, eps / 4 if self.step_size is None else self.step_size
        quarter = next(i for i in range(4) if epoch + 1 <= (i + 1) * epochs // 4) if self.schedule == "intended" else 3
        steps, length = QUARTERS[quarter]
        return eps, steps, length * eps
