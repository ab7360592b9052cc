"""A cohort: students that share a stream of batches (and a teacher), trained side by side in one process.

Each student runs forward, backward and step on its own before the next one begins, with its draws seeded by name, so
its weights are the same whether it is trained alone, in company or in another order; and only one student's
activations are in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pytorch_lightning as pl
import torch
from torch import nn

from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.models.input_transform import InputTransform
from kd_bench.training.student import StudentModule, split_micro_batches
from kd_bench.training.teacher import OpenLogitCache, Teacher
from kd_bench.types import Batch, Output, Outputs
from kd_bench.utils.distributed import all_gather_object, all_reduce_max, gather_object, rank

#: Told now and then how far a cohort is: (epoch from 0, steps done in it, steps of an epoch, images a second).
Progress = Callable[[int, int, int, float], None]

#: Seconds of training after which members are kept within an epoch, so that a kill loses no more of a long one.
KEEP_SECONDS = 600.0


class StopRequested(Exception):
    """The cohort was asked to leave, and has kept where it is."""


class CohortModule(pl.LightningModule):
    """Trains members on one stream of batches; what they learn from is up to the subclass.

    Attributes:
        members: The trials in training.
        start_epoch: Epoch (from 0) at which this process begins: that of the member that is least far.
        begin_step: Steps of that epoch that were done before.
        leaving: Whether to keep everything after the step in hand, and leave; asked after every step.
        listen: Called when training begins, after Lightning has put handlers of its own in the place of others.
        keep_seconds: After how many seconds to keep everything within an epoch.
    """

    automatic_optimization = False

    def __init__(self, members: Sequence[StudentModule], progress: Progress | None = None) -> None:
        super().__init__()
        if len({member.trial.stream for member in members}) != 1:
            raise ValueError("members of a cohort must share the stream of batches and the teacher")
        self.members: Sequence[StudentModule] = nn.ModuleList(members)  # type: ignore[assignment]
        self.start_epoch = min(member.epochs_done for member in members)
        self._settings = members[0].trial
        self._progress = progress
        self._active: list[StudentModule] = []
        self.leaving: Callable[[], bool] = lambda: False
        self.listen: Callable[[], None] = lambda: None
        self.keep_seconds = KEEP_SECONDS
        begin = {member.begin_step for member in members if member.epochs_done == self.start_epoch}
        if len(begin) > 1:
            raise ValueError("members of a cohort must go on from the same step")
        self.begin_step = max(begin, default=0)
        self._epoch_began = self._told = self._kept = self._training_seconds = 0.0
        self._images = 0

    @property
    def epoch(self) -> int:
        """The epoch in hand, from 0, over all processes that worked on these trials."""
        return self.start_epoch + self.current_epoch

    def teach(self, batch: Batch) -> Mapping[TeacherBatchNorm, Outputs]:
        """What the teacher puts out for a batch, by what its batch norms go by; nothing where nothing teaches."""
        raise NotImplementedError

    def cached_seconds(self) -> float | None:
        """Seconds that this epoch's teaching did not take because it was known; None where nothing is remembered."""
        return None

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One a member; each member steps its own."""
        return [member.optimizer for member in self.members]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The loader gives batches that are on the device already."""
        return batch

    def on_train_start(self) -> None:
        """Lets the process listen to signals again."""
        self.listen()

    def on_train_epoch_start(self) -> None:
        """Finds out who takes part, and sets the learning rates."""
        self._active = [member for member in self.members if member.takes_part(self.epoch)]
        for member in self._active:
            member.begin_epoch(self.epoch)
        self._epoch_began = self._told = self._kept = time.perf_counter()
        self._images = 0

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch, or one micro-batch after another: the teacher once, then each student by itself."""
        if batch.epoch != self.epoch:
            raise RuntimeError(f"the loader is in epoch {batch.epoch}, the training in {self.epoch}")
        if batch.step < self.begin_step:  # done before the cohort was resumed
            return
        if self._settings.compile == "graphs":  # what the last step's graphs put out may be written over
            torch.compiler.cudagraph_mark_step_begin()
        for part in split_micro_batches(batch, self._settings.micro_batch):
            teacher = self.teach(part.batch)
            for member in self._active:
                if not member.stopped:
                    member.step(teacher.get(member.method.teacher_batch_norm), part, self.manual_backward)
        self._images += len(batch.images)
        now = time.perf_counter()
        if self._progress and now - self._told > 0.5:
            self._told = now
            steps = int(self.trainer.num_training_batches)
            self._progress(self.epoch, batch_idx + 1, steps, self._images / (now - self._epoch_began))
        self._keep(batch.step + 1)

    def _keep(self, step: int) -> None:
        """Keeps everything if it is time to, and leaves if it was asked to; of several processes, all or none do."""
        now = time.perf_counter()
        due = rank() == 0 and now - self._kept > self.keep_seconds
        wish = all_reduce_max(2 if self.leaving() else 1 if due else 0)
        if not wish:
            return
        self._kept = now
        for member in self._active:
            if not member.stopped:
                member.writer.save_mid_epoch(member, step, gather_object(member.mid_epoch_state(step)))
        if wish == 2:
            raise StopRequested

    def on_validation_start(self) -> None:
        """Training ends here for this epoch, as far as its cost goes."""
        for member in self._active:
            if not member.stopped:
                member.before_evaluation()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._training_seconds = time.perf_counter() - self._epoch_began

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluates each student on a batch of the test set."""
        for member in self._active:
            if not member.stopped:
                member.evaluate(batch)

    def on_train_epoch_end(self) -> None:
        """Hands each student's epoch to its trial's folder."""
        own = {id(member): member.watch.read() for member in self._active}
        spared = self.cached_seconds()
        shared = max(0.0, self._training_seconds - sum(own.values())) + (spared or 0.0)
        going = [member for member in self._active if not member.stopped]
        corrupt = self._corrupt()
        for member in going:
            member.corrupt |= corrupt
            member.end_epoch(self.epoch, own[id(member)], shared, len(going), spared)
        self.begin_step = 0
        self.trainer.train_dataloader.set_epoch(self.epoch + 1)
        if all(member.stopped for member in self.members):
            self.trainer.should_stop = True

    def _corrupt(self) -> dict[str, str]:
        """The files that no process could decode, and why."""
        loaders = (self.trainer.train_dataloader, self.trainer.val_dataloaders)
        own = {str(path): reason for loader in loaders for path, reason in loader.corrupt.items()}
        return {path: reason for found in all_gather_object(own) for path, reason in found.items()}


class SupervisedCohort(CohortModule):
    """Networks that learn from the labels alone: teachers, and students without distillation."""

    def teach(self, batch: Batch) -> Mapping[TeacherBatchNorm, Outputs]:
        """Nobody teaches."""
        return {}


class DistillationCohort(CohortModule):
    """Students that share one frozen teacher, whose forward pass is made once a batch.

    Args:
        members: The students; all of them name the same teacher in their trials.
        teacher: The trained network; kept in evaluation mode and never changed.
        view: How it sees the images; as they are by default.
        progress: Told now and then how far the cohort is.
        remember: Opens the store of the teacher's logits, given whether it is compiled; None to remember none.
    """

    def __init__(
        self,
        members: Sequence[StudentModule],
        teacher: nn.Module,
        view: InputTransform | None = None,
        progress: Progress | None = None,
        remember: OpenLogitCache | None = None,
    ) -> None:
        super().__init__(members, progress)
        needs: dict[TeacherBatchNorm, frozenset[Output]] = {}
        for method in (member.method for member in members):
            kind = method.teacher_batch_norm
            needs[kind] = needs.get(kind, frozenset()) | method.needs.teacher
        images = members[0].method.pair.train_size * self._settings.epochs
        self.teacher = Teacher(teacher, view or nn.Identity(), needs, self._settings, images, remember)

    def teach(self, batch: Batch) -> Mapping[TeacherBatchNorm, Outputs]:
        """The teacher's one pass over the batch, for all that some member's method needs.

        Methods that want batch norms to go by the batch's statistics have a second pass, with the buffers untouched.
        """
        found: dict[TeacherBatchNorm, Outputs] = self.teacher(batch)
        return found

    def cached_seconds(self) -> float | None:
        """What the store of logits has spared."""
        return self.teacher.cached_seconds()
