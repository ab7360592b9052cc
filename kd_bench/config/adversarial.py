"""The settings of adversarial training: how images are perturbed, and what else is done for robustness."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kd_bench.config.base import NonNegative, Positive, PositiveInt, Settings

#: Steps of the inner maximisation in each quarter of the training, and their length as a share of epsilon.
QUARTERS = ((2, 1.0), (3, 2 / 3), (4, 1 / 2), (5, 1 / 2))


def _number(value: Any) -> Any:
    """``8/255`` as a number; anything else as it is, for the type to refuse."""
    if isinstance(value, str):
        above, slash, below = value.partition("/")
        try:
            return float(above) / float(below) if slash else value
        except (ValueError, ZeroDivisionError):
            return value
    return value


#: A number above 0 that may be written as a fraction, e.g. ``8/255``.
Length = Annotated[float, BeforeValidator(_number), Field(gt=0)]


class WeightPerturbation(Settings):
    """Adversarial weight perturbation (Wu, Xia and Wang, 2020).

    Before each step every weight tensor is moved up the gradient of the loss by ``gamma`` times its own norm; the
    gradient is taken there, and the weights are put back before the step.

    Attributes:
        gamma: Length of the move by the norm of the tensor.
        from_epoch: First epoch, from 1, that has it.
    """

    gamma: Positive = 0.005
    from_epoch: PositiveInt = 10


class EpochAverage(Settings):
    """Moving average of the weights over the ends of epochs, batch norms' statistics included; it is what is evaluated.

    Attributes:
        decay: Share of its former value that the average keeps at each epoch.
        from_epoch: The epoch, from 1, at whose end it begins.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9
    from_epoch: PositiveInt = 1


class SecondView(Settings):
    """A second view of every image of a batch, with a crop and a flip of its own and more augmentation.

    Cross-entropy and perturbation have both views; the other terms of the loss are those of the first view plus
    ``weight`` times those of the second.

    Attributes:
        weight: Of the second view's terms (gamma in the released code).
        autoaugment: Whether the second view has AutoAugment's CIFAR-10 policy.
        cutout: Side in pixels of the square that is blackened in the second view; None for none.
    """

    weight: NonNegative = 1.0
    autoaugment: bool = True
    cutout: PositiveInt | None = None


class Generated(Settings):
    """Generated images beside those of the data set.

    An epoch has as many images as the training set; of each batch, ``share`` are drawn from the generated ones, with
    replacement, and the rest from the training set in a new order each epoch, as in the code of Wang et al. (2023).

    Attributes:
        path: An ``.npz`` with ``image``, (N, H, W, 3) uint8, and ``label``, (N,) integers; below the data folder or
            absolute.
        sha256: Of the file. A recipe's None is found from the file when the recipe is read.
        share: Of a batch.
    """

    path: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.7


class Adversarial(Settings):
    """How a network is trained on perturbed images. Lengths are those of images with values from 0 to 1.

    Attributes:
        eps: Largest perturbation.
        norm: Whether ``eps`` is of the largest change of any value (``Linf``) or of the Euclidean length (``L2``).
        steps: Steps of projected gradient ascent; left out where there is a schedule.
        step_size: Length of a step; None for a quarter of the epoch's epsilon.
        schedule: ``released`` for 5 steps of half the epoch's epsilon, which is what the released code of IKL-AT does;
            ``intended`` for what it seems to have meant: by quarter of the training 2, 3, 4 and 5 steps of the epoch's
            epsilon, two thirds, half and half of it. None for ``steps`` and ``step_size``.
        ramp: Whether epsilon grows linearly, to its full size in the last epoch.
        start: Where the ascent begins: at the image (``none``), beside it by normal noise of standard deviation 0.001
            (``gaussian``), or anywhere within epsilon (``uniform``).
        inner: What the ascent makes large: the method's ``own`` loss, the ``kl`` divergence from the images'
            probabilities, or the ``cross_entropy`` with the labels.
        weight_perturbation: Perturbation of the weights as well; None for none.
        average: What is evaluated is the average over epochs; None for the last epoch's network, or for the average
            over steps where the trial has ``ema``.
        second_view: A second view of each image; None for none.
        generated: Generated images; None for none.
    """

    eps: Length
    norm: Literal["Linf", "L2"] = "Linf"
    steps: PositiveInt | None = None
    step_size: Length | None = None
    schedule: Literal["released", "intended"] | None = None
    ramp: bool = False
    start: Literal["none", "gaussian", "uniform"] = "gaussian"
    inner: Literal["own", "kl", "cross_entropy"] = "own"
    weight_perturbation: WeightPerturbation | None = None
    average: EpochAverage | None = None
    second_view: SecondView | None = None
    generated: Generated | None = None

    @model_validator(mode="after")
    def _one_way_to_say_the_steps(self) -> Adversarial:
        if self.schedule is not None and (self.steps is not None or self.step_size is not None):
            raise ValueError("schedule says steps and step_size, so these must be left out")
        if self.schedule is None and self.steps is None:
            raise ValueError("steps is missing, or a schedule that says it")
        return self

    def at(self, epoch: int, epochs: int) -> tuple[float, int, float]:
        """Epsilon, number of steps and length of a step in an epoch.

        Args:
            epoch: From 0.
            epochs: All epochs.
        """
        eps = self.eps * (epoch + 1) / epochs if self.ramp else self.eps
        if self.schedule == "released":
            steps, share = QUARTERS[-1]
        elif self.schedule == "intended":
            steps, share = next(one for i, one in enumerate(QUARTERS) if epoch + 1 <= (i + 1) * epochs // 4)
        else:
            assert self.steps is not None
            return eps, self.steps, eps / 4 if self.step_size is None else self.step_size
        return eps, steps, share * eps
