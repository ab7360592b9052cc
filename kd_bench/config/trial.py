"""A trial: the settings of one training, with everything that its result depends on. Their hash is its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.base import PerTrial, Settings, Sha256, Shared, added_field, shared_fields
from kd_bench.config.data import Augment, Dataset, Input, Pipeline
from kd_bench.config.limits import MAX_TRIALS, BatchSize, Epochs, Positive
from kd_bench.config.numbers import FractionBelowOne, OpenFraction
from kd_bench.config.optimizer import SGD, Optimizer, Schedule, StepSchedule

#: Incremented whenever the same settings give other numbers, so that old and new results are never mixed.
SCHEMA = 1

Seed = Annotated[int, Interval(ge=0, lt=2**31)]


def _check_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    twice = next((seed for index, seed in enumerate(seeds) if seed in seeds[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_TRIALS), AfterValidator(_check_distinct)]

#: Loss between logits and labels, the "ce" term of the methods.
LabelLoss = Literal["cross_entropy", "binary_cross_entropy"]

#: The part of a network that is trained: all of it, its classifier, or the last block and everything behind it.
Trainable = Literal["all", "head", "last_block"]


class Training(Settings):
    """How a network is trained, whatever the method.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimizer: Optimiser, learning rate, momentum and weight decay.
        schedule: Learning rate over the epochs; it changes between epochs, not between steps.
        clip_norm: Largest norm of a student's gradient (all its parameters and its method's together); None for no
            limit.
        label_loss: The methods' "ce" term: the cross-entropy, or the binary cross-entropy of each class, averaged over
            images and classes.
        precision: Precision of the forward passes of students and teacher; losses are always in float32.
        micro_batch: Number of images that batch norms and losses see at once, a divisor of ``batch_size``; gradients
            are accumulated. None for the whole batch.
        drop_path: Rate of stochastic depth in the student.
        ema: Decay per step of the moving average of the student's weights, which is evaluated in addition to the
            student; None for no average.
        sync_batch_norm: Whether a student's batch norms see the whole batch, of which each process has one micro-batch;
            the losses still see one micro-batch.
        channels_last: Whether networks use the channels-last memory format, which changes the last bits.
        compile: Networks that ``torch.compile`` is applied to, which changes the last bits, and the draws of networks
            with dropout or stochastic depth: ``on`` all networks; ``auto`` the teacher, if its passes are long enough
            and there is a compiler; ``off`` none. ``graphs`` is another name of ``on``, from the time before steps on a
            GPU were recorded as CUDA graphs anyway.
        teacher_precision: Precision of the teacher's forward pass; None for ``precision``. If students compute in
            float32, its outputs are float32.
        augment: Augmentation of training images that are kept in memory.
        second_view: Augmentation, with the keys of ``augment``, of a second view of the same images, which a method
            compares with the first; None for none. Methods that read one view ignore it in a recipe, and a row or pair
            of theirs must not have it.
        pipeline: How image files become batches, instead of ``augment``; None for a set that is decoded once and kept
            in memory.
        input: The input of the network.
        adversarial: How images are perturbed, for the methods of adversarial training only.
    """

    epochs: Shared[Epochs] = 240
    batch_size: Shared[BatchSize] = 64
    optimizer: PerTrial[Optimizer] = SGD()
    schedule: PerTrial[Schedule] = StepSchedule()
    clip_norm: PerTrial[Positive | None] = None
    label_loss: PerTrial[LabelLoss] = added_field("cross_entropy")
    precision: Shared[Literal["float32", "bfloat16"]] = added_field("float32")
    micro_batch: Shared[BatchSize | None] = added_field()
    drop_path: PerTrial[FractionBelowOne] = added_field(0.0)
    ema: PerTrial[OpenFraction | None] = added_field()
    sync_batch_norm: PerTrial[bool] = added_field(False)
    channels_last: Shared[bool] = added_field(False)
    compile: Shared[Literal["off", "auto", "on", "graphs"]] = added_field("auto")
    teacher_precision: Shared[Literal["float32", "bfloat16"] | None] = added_field()
    augment: Shared[Augment] = Augment()
    second_view: Shared[Augment | None] = added_field()
    pipeline: Shared[Pipeline | None] = added_field()
    input: PerTrial[Input] = added_field(Input())
    adversarial: Adversarial | None = added_field()

    @model_validator(mode="after")
    def _check_combination(self) -> Training:
        if self.adversarial is not None:
            self._check_adversarial(self.adversarial)
        if self.second_view is not None:
            for key in ("mixup", "cutmix"):
                if getattr(self.second_view, key) is not None:
                    raise ValueError(f"second_view.{key} must be left out, because both views have the same labels")
                if getattr(self.augment, key) is not None:
                    raise ValueError(f"augment.{key} must be left out with second_view, whose images are not mixed")
            if self.pipeline is not None:
                raise ValueError("second_view must be left out with a pipeline; only images in memory have two views")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, which is {self.batch_size}")
        if self.pipeline is not None and self.augment not in (Augment(), Augment(crop=0, flip=False)):
            raise ValueError("augment must be left out with a pipeline, which has an augmentation of its own")
        if self.pipeline is not None and self.pipeline.mixes and (self.micro_batch or self.batch_size) % 2:
            key = "micro_batch" if self.micro_batch else "batch_size"
            raise ValueError(f"{key} must be even for pipeline.mixup and pipeline.cutmix, which pair images")
        return self

    def _check_adversarial(self, adversarial: Adversarial) -> None:
        for key in ("micro_batch", "pipeline"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} must be left out with adversarial, because images are perturbed batch by batch"
                )
        average = adversarial.average
        if average is not None and self.ema is not None:
            raise ValueError("ema must be left out with adversarial.average, which is the average that is evaluated")
        for key, part in (("average", average), ("weight_perturbation", adversarial.weight_perturbation)):
            if part is not None and part.from_epoch > self.epochs:
                raise ValueError(f"adversarial.{key}.from_epoch must not be above epochs, which is {self.epochs}")


class LogitSettings(Settings):
    """Settings of a row that can be combined with any method that compares logits.

    Attributes:
        standardise: Whether the method reads standardised logits of teacher and student (Sun et al., "Logit
            Standardization in Knowledge Distillation", 2024). The loss with the labels reads the raw logits.
        entropy_weights: Temperature of the entropies that weight the samples' distillation losses (Su et al., "EA-KD",
            2025); None for equal weights.
    """

    standardise: bool = added_field(False)
    entropy_weights: Positive | None = added_field()

    def logit_settings(self) -> dict[str, Any]:
        """Returns those of the settings above that are switched on, by name, as plain JSON values."""
        return self.model_dump(mode="json", include=set(LogitSettings.model_fields))


class MethodSettings(LogitSettings):
    """A method with all its hyper-parameters. ``source`` is the SHA-256 of a plug-in's file, None for our methods."""

    name: str
    hyperparameters: dict[str, Any] = {}
    source: str | None = None

    @property
    def preparation_epochs(self) -> int:
        """Number of epochs before the student's own, see ``kd_bench.methods.base.Method``."""
        epochs = self.hyperparameters.get("preparation_epochs")
        return max(0, epochs) if isinstance(epochs, int) else 0

    @property
    def title(self) -> str:
        """The method's name with the logit settings that are switched on, e.g. ``kd + standardise``."""
        texts = (key if value is True else f"{key} {value:g}" for key, value in self.logit_settings().items())
        return " + ".join((self.name, *texts))


class IdentifiedSettings(Settings):
    """Settings with an identity."""

    def settings(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values."""
        return self.model_dump(mode="json")

    @cached_property
    def id(self) -> str:
        """Identity of the settings: 16 hexadecimal digits of the SHA-256 of their canonical JSON."""
        return identity(self.settings())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy with the identity of its own settings."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(copy).model_fields.keys():
            del copy.__dict__[name]  # pydantic copies cached properties, too
        return copy


class PretrainedTeacher(IdentifiedSettings):
    """A teacher that is not trained here: its weights come in a file. Written as its folder's ``trial.json``.

    Attributes:
        dataset: The images it was trained on.
        model: The network, by timm's name.
        weights: SHA-256 of the file, wherever it is.
        input: The input of the network.
        pipeline: How test image files are read; None for images in memory.
        model_source: SHA-256 of the file of a user-defined network; None for ours and timm's.
    """

    teacher: ClassVar[None] = None  # a pretrained teacher has no known teacher of its own
    epochs: ClassVar[int] = 1  # the work is one pass over the test set
    preparation_epochs: ClassVar[int] = 0

    dataset: Dataset
    model: str
    weights: Sha256
    input: Input = added_field(Input())
    pipeline: Pipeline | None = added_field()
    model_source: str | None = added_field()

    @property
    def cohort_key(self) -> str:
        """As a trial's. A pretrained teacher shares its cohort with nothing."""
        return self.id


class Trial(Training, IdentifiedSettings):
    """One training: everything that its result depends on, and nothing else. Written as ``trial.json``.

    ``model_source`` is the SHA-256 of the file of a user-defined network, None for ours and timm's. ``pretrained`` is
    the SHA-256 of the file of the network's initial weights, None for random ones, and ``trainable`` the part of the
    network that is trained.
    """

    schema_version: PerTrial[int] = Field(default=SCHEMA, alias="schema")
    dataset: Shared[Dataset]
    model: PerTrial[str]
    model_source: PerTrial[str | None] = added_field()
    pretrained: PerTrial[Sha256 | None] = added_field()
    trainable: PerTrial[Trainable] = added_field("all")
    method: PerTrial[MethodSettings]
    teacher: Shared[Trial | PretrainedTeacher | None] = None
    seed: Shared[Seed]

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True, serialize_by_alias=True)

    @property
    def preparation_epochs(self) -> int:
        """Number of epochs before the student's own."""
        return self.method.preparation_epochs

    def without_preparation(self) -> Trial:
        """Returns the trial with the student's own epochs only."""
        if not self.preparation_epochs:
            return self
        hyperparameters = {**self.method.hyperparameters, "preparation_epochs": 0}
        return self.model_copy(update={"method": self.method.model_copy(update={"hyperparameters": hyperparameters})})

    @property
    def cohort_key(self) -> str:
        """Key that groups trials into cohorts: trials may be trained together if their shared settings are equal."""
        return canonical(self.model_dump(mode="json", include=shared_fields(Trial)))

    @cached_property
    def stream_key(self) -> str:
        """Key of the stream of batches: a trial without a teacher may join a cohort if their keys are equal."""
        include = shared_fields(Trial)
        del include["teacher"], include["teacher_precision"]  # neither changes a trial without a teacher
        return canonical(self.model_dump(mode="json", include=include))


def canonical(value: Any) -> str:
    """Returns JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(settings: dict[str, Any]) -> str:
    """Returns the identity of settings: 16 hexadecimal digits of the SHA-256 of their canonical JSON."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial and its cell of the table. A trial without a teacher is in the cells of all pairs with its student."""

    trial: Trial
    label: str  # of the table's row
    taught_by: Trial | PretrainedTeacher | None  # the pair's teacher, even if the trial itself has none
    weights: Path | None = None  # of a pretrained teacher, or those that a teacher's training starts from
    untuned: bool | str = False  # the row's mark for this pair, see ``MethodEntry``

    @property
    def trial_id(self) -> str:
        """Identity of the trial, and name of its folder."""
        return self.trial.id

    @property
    def teacher_id(self) -> str | None:
        """Identity of the pair's teacher."""
        return self.taught_by.id if self.taught_by else None

    @property
    def teacher_seed(self) -> int | None:
        """Seed of the teacher that the trial itself has; None without one, and for a pretrained teacher."""
        return self.trial.teacher.seed if isinstance(self.trial.teacher, Trial) else None

    @property
    def teacher(self) -> str:
        """Name of the teacher's network; a dash if the pair has none."""
        return self.taught_by.model if self.taught_by else "-"

    @property
    def student(self) -> str:
        """Name of the student's network."""
        return self.trial.model

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.trial.method.name

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return self.trial.seed

    @property
    def dataset(self) -> str:
        """Title of the data set."""
        return self.trial.dataset.title
