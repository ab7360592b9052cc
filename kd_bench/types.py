"""The types that methods, models, data and training exchange."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from kd_bench.config.trial import LabelLoss

#: A kind of output of a network.
Output = Literal["logits", "stages", "preacts", "pooled"]

LOGITS: frozenset[Output] = frozenset({"logits"})
NOTHING: frozenset[Output] = frozenset()


@dataclass(frozen=True)
class Batch:
    """One step's samples, on the training device.

    Attributes:
        images: (B, 3, H, W) float, normalised.
        labels: (B,) int64, or (B, K) float once mixed.
        index: (B,) int64, position in the training set.
        epoch: From 0.
        step: Within the epoch, from 0.
        views: (B,) int64, on the CPU: number of each image's view; None if views are not numbered.
        generator: Generator for a method's draws, which the trainer has seeded for this step; None stands for torch's
            global generators, which are seeded in the same way.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    step: int
    views: Tensor | None = None
    generator: Generator | None = None

    def epoch_value(self, function: Callable[[int], float]) -> float:
        """Returns ``function(epoch)``, e.g. a warm-up factor.

        A recorded step is recorded again when the value changes. A method that reads ``epoch`` itself is recorded again
        in every epoch, because nothing else shows when the epoch matters.
        """
        return function(self.epoch)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with ``function`` applied to images, labels and index."""
        return replace(self, images=function(self.images), labels=function(self.labels), index=function(self.index))

    def rows(self, rows: slice) -> Batch:
        """Returns the batch with some of its samples."""
        views = None if self.views is None else self.views[rows]
        return replace(self.map(lambda tensor: tensor[rows]), views=views)


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for a batch. Outputs that were not requested are None or empty."""

    logits: Tensor  # (B, K)
    stages: tuple[Tensor, ...] = ()  # (B, C, H, W) each, stem first, after the activation
    preacts: tuple[Tensor, ...] = ()  # as stages, before the activation; empty if the network has none
    pooled: Tensor | None = None  # (B, D), the input of the classifier

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Returns the outputs with ``function`` applied to each tensor."""
        pooled = None if self.pooled is None else function(self.pooled)
        return Outputs(
            function(self.logits), tuple(map(function, self.stages)), tuple(map(function, self.preacts)), pooled
        )

    def tensors(self) -> list[Tensor]:
        """Returns all tensors: logits, stages, pre-activations, pooled embedding."""
        return [self.logits, *self.stages, *self.preacts, *([] if self.pooled is None else [self.pooled])]


@dataclass(frozen=True)
class Needs:
    """The outputs that a method reads. A teacher of which nothing is needed never runs."""

    student: frozenset[Output] = LOGITS
    teacher: frozenset[Output] = LOGITS


@dataclass(frozen=True)
class Shapes:
    """Shapes of a network's outputs for one image, from a dry forward pass."""

    logits: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...] = ()
    preacts: tuple[tuple[int, ...], ...] = ()
    pooled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, as a method knows them when it is constructed.

    Attributes:
        num_classes: K.
        train_size: Number of training images.
        student: Shapes of the student's outputs.
        teacher: Shapes of the teacher's outputs; None without a teacher.
        student_name, teacher_name: Names of the networks, for error messages.
        train_labels: (N,) int64, the class of every training image, on the CPU.
        label_loss: The loss of the "ce" term.
        teacher_norms: Scale and shift, (C,) each, of the batch norms whose outputs are the teacher's pre-activations;
            None for a pre-activation of another layer. Empty unless pre-activations are needed.
    """

    num_classes: int
    train_size: int
    student: Shapes
    teacher: Shapes | None = None
    student_name: str = field(default="student", compare=False)
    teacher_name: str = field(default="teacher", compare=False)
    train_labels: Tensor | None = field(default=None, compare=False, repr=False)
    label_loss: LabelLoss = "cross_entropy"
    teacher_norms: tuple[tuple[Tensor, Tensor] | None, ...] = field(default=(), compare=False, repr=False)
