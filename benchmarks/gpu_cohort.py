"""Cohorts on a device, whose steps are run without Lightning, recorded or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import pairs
from kd_bench.config.data import Dataset
from kd_bench.config.load import read_recipe
from kd_bench.config.optimizer import DOT, AdamW
from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.step_cost import DiscardingWriter
from kd_bench.plan import plan
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.loaders import loaders
from kd_bench.training.recorder import Recorder, choose_recorder
from kd_bench.training.student import StudentModule
from kd_bench.utils.errors import UserError

#: Makes the recorder of a cohort, given the device and a trial.
MakeRecorder = Callable[[torch.device, Trial], Recorder | None]

#: The pair of one family that is measured besides those of Table 6.
SAME_FAMILY = ("cifar100/other_pairs", ("teacher=resnet32x4", "student=resnet8x4"))
#: Methods whose bits are compared in bfloat16: one of logits, one of features, one with a second pass of the teacher,
#: and one with random draws.
HALF_METHODS = ("kd", "reviewkd", "ofd", "crd")
#: Steps after which everything must be recorded, and batches that take turns.
SETTLED_STEPS, BATCHES = 40, 8


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        quick: Whether one pair of tiny networks takes the place of the real pairs.
        bits: Training and test images of the comparison of bits, and its batch size. An epoch must have more steps than
            a block of recorded steps, and its last batch must be smaller.
        company: Members of a cohort whose bits are compared.
        methods: Number of methods whose bits are compared, the first by name; None for all, and for further settings.
        students: Members of the large cohorts whose steps are timed.
        steps, rounds: Steps of a round, and rounds.
        eager_steps: Steps without recording.
        epoch: Training and test images of the whole epoch; None for all.
        idle: Iterations of Lightning's loop that do nothing, and operations that are started.
        repeated: Steps that are made twice, to see whether their bits are the same.
    """

    quick: bool = False
    bits: tuple[int, int, int] = (16 * 20 + 8, 100, 16)
    company: int = 8
    methods: int | None = None
    students: int = 8
    steps: int = 20
    rounds: int = 3
    eager_steps: int = 3
    epoch: tuple[int, int] | None = None
    idle: int = 2000
    repeated: int = 4


TINY = Sizes(
    quick=True,
    bits=(4 * 3 + 2, 8, 4),
    company=2,
    methods=2,
    students=2,
    steps=2,
    rounds=2,
    eager_steps=1,
    epoch=(4 * 8, 8),
    idle=20,
    repeated=2,
)
#: Negatives of CRD, fewer than the training images of other classes.
FEW_NEGATIVES = 32


class Context:
    """What all measurements share.

    Args:
        device: The device.
        sizes: How much is measured.
        data: Folder of data sets; None for ``KD_BENCH_DATA``, else ``./data``.
        make_recorder: Makes the recorders.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Sizes,
        data: Path | None = None,
        make_recorder: MakeRecorder = choose_recorder,
    ) -> None:
        self.device, self.sizes, self.make_recorder = device, sizes, make_recorder
        self._data = datasets.resolve_data_dir(data)

    @cached_property
    def has_cifar100(self) -> bool:
        """Whether CIFAR-100 is in the folder of data sets. Otherwise images are noise."""
        try:
            datasets.locate(Dataset(name="cifar100"), self._data)
        except UserError:
            return False
        return not self.sizes.quick

    @cached_property
    def images(self) -> ArrayDataset:
        """CIFAR-100, or noise in its shape."""
        if self.has_cifar100:
            return datasets.load(Dataset(name="cifar100"), self._data)
        return pairs.random_images(64, 8) if self.sizes.quick else pairs.random_images(test=10_000)

    @cached_property
    def trials(self) -> dict[str, dict[str, Trial]]:
        """Trials by pair and method: the pairs of Table 6, and one more."""
        planned = pairs.plan_pairs(self.sizes.quick)
        return planned if self.sizes.quick else planned | pairs.plan_pairs(source=SAME_FAMILY[0], only=SAME_FAMILY[1])

    def bit_trials(self) -> dict[str, Trial]:
        """Returns trials of all methods that are not adversarial, and of more settings, for one pair of small networks.

        The methods of Table 6 come first. CRD's published number of negatives is larger than the number of images here,
        so it draws them with replacement. A further trial draws fewer negatives, without replacement.
        """
        from kd_bench.methods import _registry as methods

        names = [name for name in methods.names() if methods.describe(name).family != "adversarial"]
        if self.sizes.methods is not None:
            return self._small_trials({name: {} for name in names[: self.sizes.methods]})
        first = self._small_trials({name: {} for name in pairs.METHODS})
        few = self._small_trials({f"crd, {FEW_NEGATIVES} negatives": {"method": "crd", "negatives": FEW_NEGATIVES}})
        others = self._small_trials({name: {} for name in names if name not in pairs.METHODS})
        kd = first["kd"]
        further = {
            "kd, AdamW": with_settings(kd, optimizer=AdamW(name="adamw", lr=1e-3)),
            "kd, DOT": with_settings(kd, optimizer=DOT(name="dot")),
            "kd, moving average": with_settings(kd, ema=0.9),
        }
        return first | few | further | others

    def bit_trials_in_bfloat16(self) -> dict[str, Trial]:
        """Returns trials of ``HALF_METHODS`` in bfloat16, which are a cohort of their own."""
        trials = {} if self.sizes.methods else self._small_trials({name: {} for name in HALF_METHODS})
        return {f"{name}, bfloat16": with_settings(trial, precision="bfloat16") for name, trial in trials.items()}

    def _small_trials(self, rows: dict[str, dict[str, Any]]) -> dict[str, Trial]:
        recipe = {
            "name": "bits",
            "extends": "cifar100/base.yaml",
            "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
            "methods": rows,
            "epochs": 2,
            "batch_size": self.sizes.bits[2],
            "trials": 1,
        }
        planned = plan(read_recipe(recipe), "bits")
        return {cell.label: _with_short_preparation(cell.trial) for cell in planned}


def _with_short_preparation(trial: Trial) -> Trial:
    """Returns the trial with one epoch before the student's own, if it has any."""
    if not trial.preparation_epochs:
        return trial
    hyperparameters = {**trial.method.hyperparameters, "preparation_epochs": 1}
    return trial.model_copy(update={"method": trial.method.model_copy(update={"hyperparameters": hyperparameters})})


def with_settings(trial: Trial, **changes: Any) -> Trial:
    """Returns a trial with other settings and the identity that belongs to them."""
    return Trial.model_validate_json(trial.model_copy(update=changes).model_dump_json())


@dataclass
class NoteWriter(DiscardingWriter):
    """A result writer that keeps the notes and raises a method's error."""

    notes: list[str] = field(default_factory=list)

    def report_note(self, member: StudentModule, text: str) -> None:
        self.notes.append(f"{member.trial.method.name}: {text}")


@contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Inside, the list collects what kd-bench logs, e.g. why a teacher's pass is not recorded. Nothing is printed."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("kd_bench")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class SteppedCohort:
    """A cohort that makes one step after another on a few batches of full size.

    Args:
        trials: The members.
        images: The data set.
        device: The device.
        recorder: Records the steps; None for steps that are not recorded.

    Attributes:
        notes: The members' notes, among them why a step is not recorded.
    """

    def __init__(
        self, trials: Sequence[Trial], images: ArrayDataset, device: torch.device, recorder: Recorder | None
    ) -> None:
        taught = next((trial for trial in trials if trial.teacher is not None), None)
        network, view = (None, None) if taught is None else pairs.build_teacher(taught, images)
        self.notes: list[str] = []
        members = [build_student(trial, images, network, NoteWriter(self.notes)) for trial in trials]
        cohort = CohortModule(members, network, view, recorder=recorder).to(device).train()
        cohort.manual_backward = lambda loss: loss.backward()
        cohort.on_train_start()
        cohort.on_train_epoch_start()
        self.cohort, self.device = cohort, device
        train, _ = loaders(trials[0], images, device)
        self._batches = cycle([batch for batch in islice(train, BATCHES) if len(batch.images) == trials[0].batch_size])

    def step(self) -> None:
        """Trains all members on the next batch."""
        self.cohort.training_step([next(self._batches)], 0)

    def settle(self) -> None:
        """Makes steps until all that can be recorded is recorded, and the parts of a step have been timed.

        Raises:
            RuntimeError: If this does not come to an end.
        """
        recorded = self.cohort.recorded
        for _ in range(SETTLED_STEPS):
            self.step()
            if recorded is None or recorded.times is not None:
                return
        raise RuntimeError(f"after {SETTLED_STEPS} steps the cohort is still busy with recording")

    def choose_members(self, count: int) -> None:
        """Trains only the first members in further steps."""
        for index, member in enumerate(self.cohort.members):
            member.stopped = index >= count

    def stop_recording(self) -> None:
        """Makes further steps without recordings, on the same tensors, as with the smaller last batch of an epoch."""
        if self.cohort.recorded is not None:
            self.cohort.recorded.accepts = lambda *_: False  # type: ignore[method-assign]
