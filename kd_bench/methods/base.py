"""What every method of distillation is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kd_bench import losses
from kd_bench.types import Batch, Needs, Outputs, Pair

#: What a method distils; a baseline distils nothing, an adversarial method trains a network on perturbed images.
Family = Literal["logits", "features", "baseline", "adversarial"]

#: What the batch norms of a teacher go by: their running statistics, as in evaluation, or those of the batch.
TeacherBatchNorm = Literal["running", "batch"]


class Method(nn.Module):
    """Turns what student and teacher put out for a batch into named terms of the student's loss.

    A method is one file with one public class. Its docstring's first paragraph is what ``kd-bench list`` shows, and its
    ``Args:`` is what ``kd-bench show`` tells of each hyper-parameter. Hyper-parameters are the keyword-only arguments
    of the class's own ``__init__``, annotated with the types of ``kd_bench.methods.parameters``; their defaults, which
    are literals, stand nowhere else. ``family`` and ``needs_teacher``, where they differ from those here, are literals
    in the class too: all of this is read from the source before the class is imported.

    What a method trains are its parameters, what it remembers are its buffers; both are checkpointed and resumed with
    it, and nothing else is. Its parameters are optimised with the student's.

    Labels of mixed images are (B, K) shares: the cross-entropy reads them as they are, and where a method needs one
    class of an image, ``hard_labels`` gives it.

    Random draws, here and in ``forward``, come from torch's global generators: immediately before each call the trainer
    seeds them by (seed, stream, epoch, step), so a draw never depends on what ran before. A method must not keep a
    generator of its own, and must not change in place what it is given: other students read the same teacher's outputs.

    Args:
        pair: Number of classes, size of the training set, and the shapes of both networks' outputs.

    Attributes:
        family: What is distilled.
        needs_teacher: Whether there is a teacher at all.
        needs: Outputs of student and teacher that ``forward`` reads, known of the class before ``pair`` is.
        teacher_batch_norm: "batch" for a teacher that normalises by the batch's own statistics, as some published code
            lets it; its buffers stay as they are. Another than the default costs a forward pass of its own.
        pair: As given.
    """

    family: ClassVar[Family] = "logits"
    needs_teacher: ClassVar[bool] = True
    needs: Needs = Needs()
    teacher_batch_norm: TeacherBatchNorm = "running"

    @classmethod
    def needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """What ``needs`` will be of an instance, for the methods whose needs depend on a hyper-parameter.

        Args:
            hyperparameters: All of them.
        """
        return cls.needs

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, already weighted, ``label_loss`` among them as "ce".

        Args:
            student: What ``needs`` asks of the student.
            teacher: What ``needs`` asks of the teacher, without gradient; None where there is none.
            batch: The samples.

        Returns:
            Scalars by name. Their sum is the loss, which is logged as "loss"; each is logged under its own name.
        """
        raise NotImplementedError

    def label_loss(self, student: Outputs, batch: Batch) -> Tensor:
        """The loss of the student's logits with the labels, a scalar: what the trial's settings say that it is."""
        loss = losses.cross_entropy if self.pair.label_loss == "cross_entropy" else losses.binary_cross_entropy
        return loss(student.logits, batch.labels)

    def on_step_end(self) -> None:
        """Called after the last micro-batch of every step, of which ``forward`` saw one at a time.

        What a method remembers from one step to the next it changes here, so that it does not matter which process
        computed which micro-batch.
        """

    def on_epoch_end(self) -> None:
        """Called after the last step of every epoch, before the checkpoint is written."""


def require_teacher(teacher: Outputs | None) -> Outputs:
    """``teacher``, for the methods that cannot do without.

    Raises:
        ValueError: If there is none.
    """
    if teacher is None:
        raise ValueError("this method needs a teacher's outputs and was given none")
    return teacher


def hard_labels(batch: Batch) -> Tensor:
    """(B,) int64: the labels, or of mixed ones the class with the largest share."""
    return batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(-1)


def warm_up(epoch: int, warmup_epochs: int) -> float:
    """The factor of a term that grows linearly to its full weight.

    In the first epoch it is 1 / ``warmup_epochs``: the published code counts epochs from 1.

    Args:
        epoch: From 0.
        warmup_epochs: Number of the epoch, from 1, that has full weight first; 0 for full weight at once.
    """
    return min((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0
