"""What passes between the rooms: a batch, what a network puts out for it, and what a method may know of a pair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from kd_bench.config.trial import LabelLoss

#: One kind of output that a network can be asked for.
Output = Literal["logits", "stages", "preacts", "pooled"]

LOGITS: frozenset[Output] = frozenset({"logits"})
NOTHING: frozenset[Output] = frozenset()


@dataclass(frozen=True)
class Batch:
    """One step's samples, on the training device."""

    images: Tensor
    """(B, 3, H, W) float, normalised."""
    labels: Tensor
    """(B,) int64, or (B, K) float once mixed."""
    index: Tensor
    """(B,) int64, position in the training set."""
    epoch: int
    """From 0."""
    step: int
    """Within the epoch, from 0."""
    views: Tensor | None = None
    """(B,) int64, on the CPU: the number of each image's view among all views of the set; None where they cannot be
    counted."""

    def rows(self, rows: slice) -> Batch:
        """Some of the samples."""
        views = None if self.views is None else self.views[rows]
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows], views=views)


@dataclass(frozen=True)
class Outputs:
    """What a network puts out for a batch. What was not asked for is None or empty."""

    logits: Tensor
    """(B, K)."""
    stages: tuple[Tensor, ...] = ()
    """(B, C, H, W) each, stem first, after the activation."""
    preacts: tuple[Tensor, ...] = ()
    """As ``stages``, before the activation; empty where a network has none."""
    pooled: Tensor | None = None
    """(B, D), the embedding that the classifier reads."""


@dataclass(frozen=True)
class Needs:
    """What a method reads of both networks' outputs. A teacher of whom nothing is needed never runs."""

    student: frozenset[Output] = LOGITS
    teacher: frozenset[Output] = LOGITS


@dataclass(frozen=True)
class Shapes:
    """Shapes of a network's outputs for one image, found by a dry forward."""

    logits: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...] = ()
    preacts: tuple[tuple[int, ...], ...] = ()
    pooled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """What a method may know when it is built.

    Attributes:
        num_classes: K.
        train_size: Number of training images.
        student: Shapes of the student's outputs.
        teacher: Shapes of the teacher's outputs; None for a student that trains alone.
        student_name, teacher_name: For error messages.
        label_loss: What a method's "ce" term is.
        train_labels: (N,) int64, the class of every training image, on the CPU.
        teacher_norms: Scale and shift, (C,) each, of the batch norm that puts out each of the teacher's
            pre-activations; None where no batch norm does. Empty unless pre-activations are asked for.
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
