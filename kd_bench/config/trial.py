"""A trial: one training with everything that its result depends on. The hash of its settings is its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.base import Positive, PositiveInt, Settings, added_field
from kd_bench.config.data import Augment, Dataset, Input, Pipeline
from kd_bench.config.optimizer import SGD, Optimizer, Schedule, StepSchedule

#: Raised whenever the same settings begin to give other numbers, so that old and new results are never mixed.
SCHEMA = 1


Seed = Annotated[int, Field(ge=0, lt=2**31)]


#: What the "ce" term of the methods is.
LabelLoss = Literal["cross_entropy", "binary_cross_entropy"]


def _switch(value: Any) -> Any:
    """YAML reads a bare ``on`` and ``off`` as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class Training(Settings):
    """How a network is trained, whatever the method.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images a step.
        optimizer: Optimiser and learning rate.
        schedule: Learning rate over the epochs.
        clip_norm: Largest norm of a student's gradient (all its parameters and its method's together); None: no limit.
        label_loss: What the methods' "ce" term is: the cross-entropy, or the binary cross-entropy of each class by
            itself, its mean over images and classes.
        precision: What students and teacher compute in; losses are always in float32.
        micro_batch: Images that batch norms and losses see at once, a divisor of ``batch_size``, whose gradients are
            added up; None for the whole batch.
        drop_path: Rate of stochastic depth in the student.
        ema: Share of its former value that the moving average of the student's weights keeps at each step, which is
            evaluated beside the student; None for no average.
        sync_batch_norm: Whether a student's batch norms see the whole batch, of which each process has one micro-batch,
            rather than a micro-batch; the losses still see one.
        channels_last: Whether networks keep images with the channels last, which changes the last bits.
        compile: What ``torch.compile`` makes faster, which changes the last bits, and the draws of networks with
            dropout or stochastic depth: "on" all networks; "graphs" the same as CUDA graphs, on a GPU; "auto" the
            teacher, where its passes take so long that it pays and there is a compiler; "off" nothing.
        teacher_precision: What a teacher computes in, where that is not the ``precision``; what it puts out is handed
            on in that of the students.
        augment: What happens to the training images.
        pipeline: How files of images become batches, instead of ``augment``; None for a set that is decoded once and
            lies in memory.
        input: How the network sees images.
        adversarial: How images are perturbed for the methods of adversarial training; other methods do without.
    """

    epochs: PositiveInt = 240
    batch_size: Annotated[int, Field(ge=2)] = 64
    optimizer: Optimizer = SGD()
    schedule: Schedule = StepSchedule()
    clip_norm: Positive | None = None
    label_loss: LabelLoss = added_field("cross_entropy")
    precision: Literal["float32", "bfloat16"] = added_field("float32")
    micro_batch: Annotated[int, Field(ge=2)] | None = added_field()
    drop_path: Annotated[float, Field(ge=0, lt=1)] = added_field(0.0)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = added_field()
    sync_batch_norm: bool = added_field(False)
    channels_last: bool = added_field(False)
    compile: Annotated[Literal["off", "auto", "on", "graphs"], BeforeValidator(_switch)] = added_field("auto")
    teacher_precision: Literal["float32", "bfloat16"] | None = added_field()
    augment: Augment = Augment()
    pipeline: Pipeline | None = added_field()
    input: Input = added_field(Input())
    adversarial: Adversarial | None = added_field()

    @model_validator(mode="after")
    def _adversarial_fits(self) -> Training:
        if self.adversarial is None:
            return self
        for key in ("micro_batch", "pipeline"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} must be left out where there is adversarial: images are perturbed batch by batch"
                )
        average = self.adversarial.average
        if average is not None and self.ema is not None:
            raise ValueError("ema must be left out where there is adversarial.average, the one that is evaluated")
        for key, begins in (("average", average), ("weight_perturbation", self.adversarial.weight_perturbation)):
            if begins is not None and begins.from_epoch > self.epochs:
                raise ValueError(f"adversarial.{key}.from_epoch must not be above epochs, which is {self.epochs}")
        return self

    @model_validator(mode="after")
    def _micro_batches_make_up_a_batch(self) -> Training:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, which is {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _pipeline_fits(self) -> Training:
        if self.pipeline is None:
            return self
        if self.augment not in (Augment(), Augment(crop=0, flip=False)):
            raise ValueError("augment must be left out where there is a pipeline, which says what happens to images")
        if self.pipeline.mixes and (self.micro_batch or self.batch_size) % 2:
            at_once = "micro_batch" if self.micro_batch else "batch_size"
            raise ValueError(f"{at_once} must be even for pipeline.mixup and pipeline.cutmix, which pair images")
        return self


class MethodSettings(Settings):
    """A method with all its hyper-parameters; ``source`` is the SHA-256 of a plug-in's file, None for our own."""

    name: str
    hyperparameters: dict[str, Any] = {}
    source: str | None = None


class PretrainedTeacher(Settings):
    """A teacher that is not trained here: its weights come in a file. Written as its folder's ``trial.json``.

    Attributes:
        dataset: The images it was trained on.
        model: The network, by timm's name.
        weights: SHA-256 of the file; where it lies does not matter.
        input: How the network sees images.
        pipeline: How test images are read, where they are not held in memory.
        model_source: SHA-256 of the file of a network of the user's own; None for ours and timm's.
    """

    dataset: Dataset
    model: str
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    input: Input = added_field(Input())
    pipeline: Pipeline | None = added_field()
    model_source: str | None = added_field()

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")

    @cached_property
    def id(self) -> str:
        """The identity of these weights on this data set, as a trial's."""
        return identity(self.settings())

    @property
    def stream(self) -> tuple[str, str | None]:
        """As a trial's: it has nothing in common with anything."""
        return self.id, None

    @property
    def teacher(self) -> None:
        """As a trial's: who taught it is not known."""
        return

    @property
    def epochs(self) -> int:
        """As a trial's: what there is to do is one pass, over the test set."""
        return 1


class Trial(Training):
    """One training: everything that its result depends on, and nothing else. Written as ``trial.json``.

    ``model_source`` is the SHA-256 of the file of a network of the user's own, None for ours and timm's.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    dataset: Dataset
    model: str
    model_source: str | None = added_field()
    method: MethodSettings
    teacher: Trial | PretrainedTeacher | None = None
    seed: Seed

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True, serialize_by_alias=True)

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")

    @cached_property
    def id(self) -> str:
        """The trial's identity: 16 hexadecimal digits of the SHA-256 of its settings as canonical JSON."""
        return identity(self.settings())

    @property
    def stream(self) -> tuple[str, str | None]:
        """What trials must have in common to be trained side by side: the stream of batches, and the teacher."""
        shared = {"dataset", "augment", "pipeline", "batch_size", "micro_batch", "precision", "epochs", "seed"}
        shared |= {"channels_last", "compile", "teacher_precision"}
        include: dict[str, Any] = {**dict.fromkeys(shared, True), "adversarial": {"second_view", "generated"}}
        return canonical(self.model_dump(mode="json", include=include)), self.teacher.id if self.teacher else None


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(settings: dict[str, Any]) -> str:
    """The identity of a trial with these settings."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial and the cell of the table it belongs to; a trial without a teacher stands under every pair it serves.

    Attributes:
        trial: What is trained.
        label: The table's row.
        taught_by: The pair's teacher, trained or given, also where the trial itself has none.
        weights: The file of a given teacher.
    """

    trial: Trial
    label: str
    taught_by: Trial | PretrainedTeacher | None
    weights: Path | None = None

    @property
    def trial_id(self) -> str:
        """Identity of the trial, and the name of its folder."""
        return self.trial.id

    @property
    def teacher_id(self) -> str | None:
        """Identity of the training of the pair's teacher."""
        return self.taught_by.id if self.taught_by else None

    @property
    def teacher(self) -> str:
        """The teacher's network; a dash where the pair has none."""
        return self.taught_by.model if self.taught_by else "-"

    @property
    def student(self) -> str:
        """The student's network."""
        return self.trial.model

    @property
    def method(self) -> str:
        """The method's name."""
        return self.trial.method.name

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return self.trial.seed

    @property
    def dataset(self) -> str:
        """The data set, for people."""
        return self.trial.dataset.title
