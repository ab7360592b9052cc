"""The base class of the methods of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kd_bench import losses
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError

#: What a method distils; a baseline distils nothing, an adversarial method trains a network on perturbed images.
Family = Literal["logits", "features", "baseline", "adversarial"]

#: Statistics that the batch norms of a teacher use: their running statistics, as in evaluation, or those of the batch.
TeacherBatchNorm = Literal["running", "batch"]


class Terms(dict[str, Tensor]):
    """Terms of a loss together with the logits by which the training accuracy is computed.

    For a method that replaces the student's classifier; other methods return a ``dict``.

    Args:
        terms: Scalars by name.
        logits: (B, K).
    """

    def __init__(self, terms: Mapping[str, Tensor], logits: Tensor) -> None:
        super().__init__(terms)
        self.logits = logits


class Method(nn.Module):
    """Computes the named terms of the student's loss from the outputs of student and teacher for a batch.

    A method is one file with one public class. ``kd-bench list`` shows the first paragraph of its docstring, and
    ``kd-bench show`` the whole docstring; ``Args:`` describes the hyper-parameters. Hyper-parameters are the
    keyword-only arguments of the class's own ``__init__``, annotated with the types of ``kd_bench.methods.parameters``.
    Their defaults are literals and are written nowhere else. A class without hyper-parameters needs no ``__init__``.
    ``family``, ``needs_teacher``, ``keeps_layers``, ``uses_second_view``, ``weighs_samples``, ``computes_logits`` and
    ``added_hyperparameters`` are literals in the class too, if they differ from the values below, because all of this
    is read from the source before the class is imported.

    Parameters of the method are optimised with the student's. Parameters and buffers are checkpointed and resumed;
    other attributes are not.

    Labels of mixed images are (B, K) shares. The cross-entropy reads them as they are; ``hard_labels`` returns one
    class per image.

    A method with a hyper-parameter ``preparation_epochs`` trains that many epochs before the student's own, with
    ``prepare`` in place of ``forward``. Their learning rate is constant: that of the hyper-parameter
    ``preparation_lr``, if the method has it and it is not None, or the trial's. Whatever the terms depend on is
    trained. The optimiser's state is new afterwards.

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
        added_hyperparameters: Names of the hyper-parameters that are newer than the method's first trials. A trial's
            settings leave them out where they have their defaults, so that earlier trials keep their identity; the
            default must mean what was done before.
        needs: Outputs of student and teacher that ``forward`` reads. The class has them before ``pair`` is known.
        preparation_needs: Outputs that ``prepare`` reads; None for those of ``needs``.
        keeps_layers: Whether ``inference_head`` stays in the student.
        inference_head: Maps the student's last feature map ("features"), (B, D, H, W), to logits, (B, K), and replaces
            the student's pooling and classifier in what is evaluated, saved, exported and counted. None without
            ``keeps_layers``. A layer in it that is not trained has parameters without a gradient and not buffers, so
            that they are counted. The student's own classifier is removed, so its ``logits`` are no logits.
        weighs_samples: Whether ``forward`` passes ``sample_weights`` to its losses. Then the row's setting
            ``entropy_weights`` is allowed.
        entropy_temperature: That setting; None for equal weights.
        computes_logits: Whether the method compares logits that it computes itself, which the row's setting
            ``standardise`` would not reach. Then it is refused.
        uses_second_view: Whether the method reads the outputs for a second view of the images, which the trial's
            setting ``second_view`` augments.
        teacher_batch_norm: "batch" for a teacher that normalises by the batch's own statistics, as in some published
            code; its buffers do not change. A value other than the default costs an extra forward pass of the teacher.
        pair: The argument.
    """

    family: ClassVar[Family] = "logits"
    needs_teacher: ClassVar[bool] = True
    added_hyperparameters: ClassVar[tuple[str, ...]] = ()
    keeps_layers: ClassVar[bool] = False
    uses_second_view: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = False
    computes_logits: ClassVar[bool] = False
    entropy_temperature: float | None = None
    needs: Needs = Needs()
    preparation_needs: ClassVar[Needs | None] = None
    teacher_batch_norm: TeacherBatchNorm = "running"

    @classmethod
    def needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """Returns the ``needs`` of an instance; a method overrides it if its needs depend on a hyper-parameter.

        Args:
            hyperparameters: All hyper-parameters of the instance.
        """
        return cls.needs

    @classmethod
    def needs_in_preparation(cls) -> Needs:
        """Returns what ``prepare`` reads."""
        return cls.needs if cls.preparation_needs is None else cls.preparation_needs

    @classmethod
    def all_needs_with(cls, hyperparameters: Mapping[str, Any]) -> Needs:
        """Returns what an instance reads in its preparation, if it may have one, and afterwards; as ``needs_with``."""
        needs, before = cls.needs_with(hyperparameters), cls.needs_in_preparation()
        if "preparation_epochs" not in hyperparameters:
            return needs
        return Needs(needs.student | before.student, needs.teacher | before.teacher)

    def needs_in(self, preparation: bool) -> Needs:
        """Returns what ``prepare`` reads if ``preparation`` is true, and otherwise what ``forward`` reads."""
        return self.needs_in_preparation() if preparation else self.needs

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.inference_head: nn.Module | None = None

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

    def prepare(self, student: Outputs | None, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the loss in the epochs of the preparation, as ``forward`` does in the student's own.

        Args:
            student: The student's outputs that ``preparation_needs`` lists; None if it lists none.
            teacher: The teacher's outputs that it lists, without gradient.
            batch: The samples. Its epoch is negative; the last is -1.
        """
        raise NotImplementedError(f"{type(self).__name__} has preparation_epochs, and no function prepare")

    def label_loss(self, student: Outputs, batch: Batch) -> Tensor:
        """Returns the loss of the student's logits with the labels, a scalar; the trial's settings choose which.

        Raises:
            UserError: If they are no logits, because the classifier was removed for the method's ``inference_head``.
        """
        if self.keeps_layers and _raw_logits(student).shape[-1] != self.pair.num_classes:
            raise UserError(
                "label_loss: the student's classifier was removed, so student.logits are no logits; pass "
                "dataclasses.replace(student, logits=...) with those of inference_head"
            )
        loss = losses.cross_entropy if self.pair.label_loss == "cross_entropy" else losses.binary_cross_entropy
        return loss(_raw_logits(student), batch.labels)

    def sample_weights(self, student: Outputs, teacher: Outputs) -> Tensor | None:
        """Returns the factors of the samples' distillation losses, (B,), without gradient; None for equal weights.

        They are ``losses.entropy_weights`` of the raw logits if the row has the setting ``entropy_weights``.
        """
        if self.entropy_temperature is None:
            return None
        return losses.entropy_weights(_raw_logits(student), _raw_logits(teacher), self.entropy_temperature)

    def on_step_end(self) -> None:
        """Is called after the last micro-batch of every step; ``forward`` sees one micro-batch at a time.

        A method updates here what it remembers from one step to the next, so that the result does not depend on which
        process computed which micro-batch.
        """

    def on_epoch_end(self) -> None:
        """Is called after the last step of every epoch, before the checkpoint is written."""


def _raw_logits(outputs: Outputs) -> Tensor:
    """Returns the logits as the network computed them, (B, K), even if the method reads standardised ones."""
    return outputs.logits if outputs.label_logits is None else outputs.label_logits


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
