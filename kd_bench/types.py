"""The types that methods, models, data and training exchange."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from kd_bench.utils.errors import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from kd_bench.config.trial import LabelLoss

#: A kind of output of a network. With "published_preacts", ``preacts`` have the form that they have in published code,
#: which is another one for ShuffleNet-V2.
Output = Literal["logits", "stages", "preacts", "published_preacts", "pooled", "features", "class_maps"]

LOGITS: frozenset[Output] = frozenset({"logits"})
NOTHING: frozenset[Output] = frozenset()


@dataclass(frozen=True)
class Batch:
    """One step's samples, on the training device.

    Attributes:
        images: (B, 3, H, W) float, normalised.
        labels: (B,) int64, or (B, K) float once mixed.
        index: (B,) int64, position in the training set.
        epoch: From 0; negative in the epochs of a method's preparation, of which the last is -1.
        step: Within the epoch, from 0.
        views: (B,) int64, on the CPU: number of each image's view; None if views are not numbered.
        generator: Generator for a method's draws, which the trainer has seeded for this step; None stands for torch's
            global generators, which are seeded in the same way.
        second_images: (B, 3, H, W), the same images, augmented by the trial's ``second_view``; None without one.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    step: int
    views: Tensor | None = None
    generator: Generator | None = None
    second_images: Tensor | None = None

    def epoch_value(self, function: Callable[[int], float]) -> float:
        """Returns ``function(epoch)``, e.g. a warm-up factor.

        A recorded step is recorded again when the value changes. A method that reads ``epoch`` itself is recorded again
        in every epoch, because nothing else shows when the epoch matters.
        """
        return function(self.epoch)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with ``function`` applied to images, labels, index and second images."""
        second = None if self.second_images is None else function(self.second_images)
        images, labels, index = function(self.images), function(self.labels), function(self.index)
        return replace(self, images=images, labels=labels, index=index, second_images=second)

    def tensors(self) -> list[Tensor]:
        """Returns images, labels, index and second images. ``views`` is not among them, because it is on the CPU."""
        second = [] if self.second_images is None else [self.second_images]
        return [self.images, self.labels, self.index, *second]

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
    features: Tensor | None = None  # (B, D, H, W), the last feature map; its average over the pixels is ``pooled``
    class_maps: Tensor | None = None  # (B, K, H, W), the classifier applied to each pixel; their average is ``logits``
    second_view: Outputs | None = None  # of the batch's ``second_images``
    label_logits: Tensor | None = None  # (B, K), for the loss with the labels, if ``logits`` have been standardised

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Returns the outputs with ``function`` applied to each tensor."""

        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return Outputs(
            logits=function(self.logits),
            stages=tuple(map(function, self.stages)),
            preacts=tuple(map(function, self.preacts)),
            pooled=optional(self.pooled),
            features=optional(self.features),
            class_maps=optional(self.class_maps),
            second_view=None if self.second_view is None else self.second_view.map(function),
            label_logits=optional(self.label_logits),
        )

    def named_tensors(self) -> dict[str, Tensor]:
        """Returns all tensors by name, e.g. "logits", "stages[0]" and "second_view.logits"."""
        named = {"logits": self.logits}
        named |= {f"stages[{index}]": stage for index, stage in enumerate(self.stages)}
        named |= {f"preacts[{index}]": preact for index, preact in enumerate(self.preacts)}
        for name in ("pooled", "features", "class_maps", "label_logits"):
            tensor = getattr(self, name)
            named |= {} if tensor is None else {name: tensor}
        if self.second_view is not None:
            named |= {f"second_view.{name}": tensor for name, tensor in self.second_view.named_tensors().items()}
        return named

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, in the order of ``named_tensors``."""
        return list(self.named_tensors().values())


@dataclass(frozen=True)
class Needs:
    """The outputs that a method reads. A network of which nothing is needed does not run.

    Raises:
        TypeError: If one of the two is no set.
        ValueError: If there is no such output.
    """

    student: frozenset[Output] = LOGITS
    teacher: frozenset[Output] = LOGITS

    def __post_init__(self) -> None:
        names = get_args(Output)
        for network in ("student", "teacher"):
            outputs = getattr(self, network)
            if not isinstance(outputs, Set):
                raise TypeError(
                    f"Needs: {network} should be a set, e.g. frozenset({{'stages'}}) (it is {outputs!r:.60})"
                )
            for name in sorted(map(str, outputs - set(names))):
                raise ValueError(f"Needs: {network}: there is no output {name!r}; {suggestion(name, names)}")
            object.__setattr__(self, network, frozenset(outputs))


@dataclass(frozen=True)
class Shapes:
    """Shapes of a network's outputs for one image, from a dry forward pass."""

    logits: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...] = ()
    preacts: tuple[tuple[int, ...], ...] = ()
    pooled: tuple[int, ...] | None = None
    features: tuple[int, ...] | None = None
    class_maps: tuple[int, ...] | None = None


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
        teacher_classifier: Weight (K, D) and bias (K,) of the teacher's classifier, on the CPU; None unless the
            teacher's "features" or "class_maps" are needed.
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
    teacher_classifier: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)
