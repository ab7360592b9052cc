"""The base class of the methods of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kd_bench import losses
from kd_bench.types import Batch, Needs, Outputs, Pair

#: What a method distils; a baseline distils nothing, an adversarial method trains a network on perturbed images.
Family = Literal["logits", "features", "baseline", "adversarial"]

#: Statistics that the batch norms of a teacher use: their running statistics, as in evaluation, or those of the batch.
TeacherBatchNorm = Literal["running", "batch"]


class Method(nn.Module):
    """Computes the named terms of the student's loss from the outputs of student and teacher for a batch.

    A method is one file with one public class. ``kd-bench list`` shows the first paragraph of its docstring, and
    ``kd-bench show`` the whole docstring; ``Args:`` describes the hyper-parameters. Hyper-parameters are the
    keyword-only arguments of the class's own ``__init__``, annotated with the types of ``kd_bench.methods.parameters``.
    Their defaults are literals and are written nowhere else. A class without hyper-parameters needs no ``__init__``.
    ``family`` and ``needs_teacher`` are literals in the class too, if they differ from the values below, because all of
    this is read from the source before the class is imported.

    Parameters of the method are optimised with the student's. Parameters and buffers are checkpointed and resumed;
    other attributes are not.

    Labels of mixed images are (B, K) shares. The cross-entropy reads them as they are; ``hard_labels`` returns one
    class per image.

    Random draws in ``__init__`` come from torch's global generators, those in ``forward`` from ``batch.generator``, or
    from the global generators, too. The trainer seeds them by (seed, stream, epoch, step) immediately before each call,
    so a draw never depends on earlier calls. A method must not keep a generator of its own, and must not change its
    inputs in place, because other students read the same teacher's outputs.

    On a GPU the operations of a step are recorded once and replayed, if they are the same in every step. They are not
    if ``forward`` reads a number from the device (``.item()``, a mask as an index), reads ``batch.step``, draws from
    the global generators, or keeps something outside of its buffers from one step to the next. Such a method is found
    out and trained without a recording, with the same results.

    Args:
        pair: Number of classes, size of the training set, and the shapes of both networks' outputs.

    Attributes:
        family: What is distilled.
        needs_teacher: Whether the method has a teacher.
        needs: Outputs of student and teacher that ``forward`` reads. The class has them before ``pair`` is known.
        teacher_batch_norm: "batch" for a teacher that normalises by the batch's own statistics, as in some published
            code; its buffers do not change. A value other than the default costs an extra forward pass of the teacher.
        pair: The argument.
    """

    family: ClassVar[Family] = "logits"
    needs_teacher: ClassVar[bool] = True
    needs: Needs = Needs()
    teacher_batch_norm: TeacherBatchNorm = "running"

    @classmethod
    def needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """Returns the ``needs`` of an instance; a method overrides it if its needs depend on a hyper-parameter.

        Args:
            hyperparameters: All hyper-parameters of the instance.
        """
        return cls.needs

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the weighted terms of the loss; ``label_loss`` is among them as "ce".

        Args:
            student: The student's outputs that ``needs`` lists.
            teacher: The teacher's outputs that ``needs`` lists, without gradient; None without a teacher.
            batch: The samples.

        Returns:
            Scalars by name. Their sum is the loss, logged as "loss"; each term is logged under its own name.
        """
        raise NotImplementedError

    def label_loss(self, student: Outputs, batch: Batch) -> Tensor:
        """Returns the loss of the student's logits with the labels, a scalar; the trial's settings choose which."""
        loss = losses.cross_entropy if self.pair.label_loss == "cross_entropy" else losses.binary_cross_entropy
        return loss(student.logits, batch.labels)

    def on_step_end(self) -> None:
        """Is called after the last micro-batch of every step; ``forward`` sees one micro-batch at a time.

        A method updates here what it remembers from one step to the next, so that the result does not depend on which
        process computed which micro-batch.
        """

    def on_epoch_end(self) -> None:
        """Is called after the last step of every epoch, before the checkpoint is written."""


def require_teacher(teacher: Outputs | None) -> Outputs:
    """Returns ``teacher``.

    Raises:
        ValueError: If ``teacher`` is None.
    """
    if teacher is None:
        raise ValueError("this method needs a teacher's outputs and was given none")
    return teacher


def hard_labels(batch: Batch) -> Tensor:
    """Returns one class per image, (B,) int64; for a mixed label it is the class with the largest share."""
    return batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(-1)


def warmup_factor(epoch: int, warmup_epochs: int) -> float:
    """Returns the factor of a term that grows linearly to its full weight.

    In the first epoch it is 1 / ``warmup_epochs``, because the published code counts epochs from 1.

    Args:
        epoch: Counted from 0.
        warmup_epochs: First epoch with full weight, counted from 1; 0 for full weight at once.
    """
    return min((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0


def warmup_of(batch: Batch, warmup_epochs: int) -> float:
    """Returns the ``warmup_factor`` of a batch's epoch, by ``batch.epoch_value``."""
    return batch.epoch_value(lambda epoch: warmup_factor(epoch, warmup_epochs))
