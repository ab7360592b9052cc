"""A cohort: students that share a stream of batches and a teacher, trained side by side in one process.

Each student runs forward, backward and step before the next one begins, and its random draws are seeded by name.
Therefore its weights are the same alone, in company and in another order, and only one student's activations are in
memory at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import pytorch_lightning as pl
import torch
from torch import nn

from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.models.input_transform import InputTransform
from kd_bench.training.energy import EnergyMeter
from kd_bench.training.micro_batch import split_micro_batches
from kd_bench.training.recorded_cohort import RecordedCohort
from kd_bench.training.recorder import Recorder
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.training.student import StudentModule
from kd_bench.training.teacher import OpenLogitCache, Teacher
from kd_bench.types import Batch, Output, Outputs


class CohortModule(pl.LightningModule):
    """Trains members on one stream of batches, with a shared frozen teacher that sees each batch once.

    Args:
        members: The students. Their trials must share the stream of batches and the teacher.
        teacher: The teacher's trained network, which is never changed; None for supervised training.
        view: Transforms images into the teacher's input; None leaves images as they are.
        open_logit_cache: Opens the cache of the teacher's logits; None for no cache.
        recorder: Records the steps and replays them; None for steps that are not recorded.
        energy: Reads the energy counters; None without any.

    Attributes:
        recorder: The argument.
        recorded: Runs recorded steps, from the start of training; None without a recorder.
        teacher_stopwatches: Measure the time of the teacher's passes that are not recorded, by batch-norm mode.
        start_epoch: First epoch to train, the earliest among the members'; negative if a method has a preparation.
        first_step: First step to train in that epoch; above 0 after a resume within an epoch.

    Raises:
        ValueError: If the members do not share stream and teacher, or would resume from different steps.
    """

    automatic_optimization = False

    def __init__(
        self,
        members: Sequence[StudentModule],
        teacher: nn.Module | None = None,
        view: InputTransform | None = None,
        open_logit_cache: OpenLogitCache | None = None,
        recorder: Recorder | None = None,
        energy: EnergyMeter | None = None,
    ) -> None:
        super().__init__()
        if len({member.trial.stream_key for member in members}) != 1:
            raise ValueError("members of a cohort must share the stream of batches")
        if len({member.trial.cohort_key for member in members if member.trial.teacher is not None}) > 1:
            raise ValueError("members of a cohort must share the teacher")
        self.members: Sequence[StudentModule] = nn.ModuleList(members)  # type: ignore[assignment]
        self.start_epoch = min(member.next_epoch for member in members)
        first_steps = {member.first_step for member in members if member.next_epoch == self.start_epoch}
        if len(first_steps) > 1:
            raise ValueError("members of a cohort must resume from the same step")
        self.first_step = max(first_steps)
        self._settings = members[0].trial
        self.recorder = recorder
        self.energy = energy or EnergyMeter(())
        self.recorded: RecordedCohort | None = None
        self.teacher_stopwatches: defaultdict[TeacherBatchNorm, Stopwatch] = defaultdict(Stopwatch)
        self.teacher: Teacher | None = None
        if teacher is not None:
            taught = [member for member in members if member.trial.teacher is not None] or list(members)
            needs = _teacher_needs(taught, preparation=False), _teacher_needs(taught, preparation=True)
            views = 1 if self._settings.second_view is None else 2
            # Without the epochs of preparations: whether the teacher is compiled must not depend on the other members.
            images = members[0].method.pair.train_size * self._settings.epochs * views
            self.teacher = Teacher(teacher, view or nn.Identity(), *needs, taught[0].trial, images, open_logit_cache)

    @property
    def epoch(self) -> int:
        """Current epoch, including epochs finished before a resume: from 0, negative in preparations."""
        return self.start_epoch + self.current_epoch

    @property
    def active_members(self) -> list[StudentModule]:
        """The members that train in the current epoch."""
        return [member for member in self.members if member.needs_epoch(self.epoch)]

    def is_done(self, batch: Batch) -> bool:
        """Whether the batch belongs to a step that was trained before a resume within the epoch."""
        return batch.epoch == self.start_epoch and batch.step < self.first_step

    def teacher_outputs(self, batch: Batch) -> Mapping[TeacherBatchNorm, Outputs]:
        """Returns the teacher's outputs that the methods need, by batch-norm mode. Empty without a teacher."""
        outputs: dict[TeacherBatchNorm, Outputs] = {}
        if self.teacher is None:
            return outputs
        for norm_mode in self.teacher.needs_in(batch.epoch):
            with self.teacher_stopwatches[norm_mode].running(batch.images.device):
                outputs[norm_mode] = self.teacher(batch, norm_mode)
        return outputs

    def teacher_seconds_of(self, member: StudentModule, seconds: Mapping[TeacherBatchNorm, float]) -> float | None:
        """Returns a member's part of the teacher's seconds; None if its method reads no outputs in this epoch."""
        if self.teacher is None or not member.method.needs_in(preparation=self.epoch < 0).teacher:
            return None
        return seconds.get(member.method.teacher_batch_norm, 0.0)

    def shared_seconds(self, measured: float, steps: int) -> tuple[float, dict[TeacherBatchNorm, float]]:
        """Returns the seconds of an epoch that members share: for the batches, and for the teacher's passes by mode.

        Args:
            measured: The epoch's seconds without the members' own.
            steps: Number of steps.
        """
        teacher = {norm_mode: stopwatch.read() for norm_mode, stopwatch in self.teacher_stopwatches.items()}
        times = None if self.recorded is None else self.recorded.times
        if times is not None:
            return times.batch * steps, {norm_mode: seconds * steps for norm_mode, seconds in times.teacher.items()}
        return max(0.0, measured - sum(teacher.values())), teacher

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns the members' optimisers. Each member steps its own."""
        return [member.optimizer for member in self.members]

    def transfer_batch_to_device(
        self, batch: Iterable[Batch], device: torch.device, dataloader_idx: int
    ) -> Iterable[Batch]:
        """Returns the batches as they are, because the loader makes them on the device."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Sets the learning rates, and prepares the recording of steps."""
        for member in self.active_members:
            member.begin_epoch(self.epoch)
        # Steps of a preparation are others than the student's own.
        if self.recorder is not None and (self.recorded is None or self.epoch == 0):
            self.recorded = RecordedCohort(self.members, self.teacher, self.epoch, self.recorder, self.device)

    def on_train_start(self) -> None:
        """Prepares the members for the device. On a GPU, each method draws from a generator of its own."""
        for member in self.members:
            generator: torch.Generator | None = None
            if self.recorder is not None:
                generator = self.recorder.generator()
            elif self.device.type == "cuda":
                generator = torch.Generator(self.device)
            member.prepare(self.device, generator)

    def on_train_batch_start(self, batches: Sequence[Batch], batch_idx: int) -> int | None:
        """Ends the epoch, for which Lightning expects -1, if all members have stopped."""
        return -1 if all(member.stopped for member in self.members) else None

    def training_step(self, batches: Sequence[Batch], batch_idx: int) -> None:
        """Trains on batches, one step each."""
        for batch in batches:
            if batch.epoch != self.epoch:
                raise RuntimeError(f"the loader is in epoch {batch.epoch}, the training in {self.epoch}")
            if not self.is_done(batch):
                self._train(batch)

    def _train(self, batch: Batch) -> None:
        """Trains on a batch, micro-batch by micro-batch: the teacher's pass once, then each student by itself."""
        if not self.active_members:  # others may join in a later epoch
            return
        if self.recorded is not None and self.recorded.accepts(batch):
            self.recorded.train(batch, self.active_members)
            return
        for part in split_micro_batches(batch, self._settings.micro_batch):
            teacher = self.teacher_outputs(part.batch)
            for member in self.active_members:
                with nullcontext() if self.recorded is None else self.recorded.in_lane_of(member):
                    member.step(teacher.get(member.method.teacher_batch_norm), part, self.manual_backward)

    def on_validation_start(self) -> None:
        """Prepares the students for evaluation."""
        for member in self.active_members:
            member.before_evaluation()

    def validation_step(self, batches: Iterable[Batch], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates each student on batches of the test set, or of the images that were held out."""
        for batch in batches:
            self._evaluate(batch, held_out=dataloader_idx > 0)

    def _evaluate(self, batch: Batch, held_out: bool) -> None:
        if held_out:
            for member in self.active_members:
                with member.stopping_on_errors():
                    member.evaluate(batch, held_out=True)
            return
        if self.recorded is not None and self.recorded.accepts(batch, "test"):
            self.recorded.evaluate(batch, self.active_members)
            return
        for member in self.active_members:
            with member.stopping_on_errors():
                member.evaluate(batch)


def _teacher_needs(members: Sequence[StudentModule], preparation: bool) -> dict[TeacherBatchNorm, frozenset[Output]]:
    """Returns the teacher's outputs that methods read in the epochs of a preparation, or in the students' own."""
    needs: dict[TeacherBatchNorm, frozenset[Output]] = {}
    for member in members:
        if not preparation or member.trial.preparation_epochs:
            mode, read = member.method.teacher_batch_norm, member.method.needs_in(preparation).teacher
            if read:
                needs[mode] = needs.get(mode, frozenset()) | read
    return needs
