"""Lightning callbacks of a cohort: results of an epoch, progress, checkpoints within an epoch, and stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from kd_bench.training.cohort import CohortModule
from kd_bench.training.energy import EpochEnergy, add_joules, divide, note_energy_so_far
from kd_bench.types import Batch
from kd_bench.utils.distributed import all_gather_object, all_reduce_max, gather_object, rank

#: Receives (epoch from 0, steps done, steps per epoch, images per second).
ReportProgress = Callable[[int, int, int, float], None]

_CONTINUE, _SAVE, _STOP = range(3)


class StopRequested(Exception):
    """Training has stopped on request. The state within the epoch is saved."""


class EpochResults(pl.Callback):
    """Ends each epoch: measures its time, computes the members' metrics and passes them to the result writers.

    Then it sets the loader to the next epoch. ``fit`` always adds this callback.

    Args:
        checkpoint_seconds: Least time between two checkpoints at the end of an epoch. Epochs between them have only a
            row of metrics.
    """

    def __init__(self, checkpoint_seconds: float = 0.0) -> None:
        self._checkpoint_seconds = checkpoint_seconds
        self._epoch_start = self._training_seconds = 0.0
        self._joules: dict[str, float] = {}
        self._last_checkpoint = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = time.perf_counter()
        cohort.energy.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, cohort: CohortModule, outputs: Any, batches: Sequence[Batch], batch_idx: int
    ) -> None:
        """Reads the energy counters often enough."""
        cohort.energy.read_if_due()

    def on_validation_epoch_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Stops the epoch's clock: evaluation does not count as training time."""
        if cohort.device.type == "cuda":
            torch.cuda.synchronize()
        self._training_seconds = time.perf_counter() - self._epoch_start
        self._joules = cohort.energy.joules()

    def on_train_epoch_end(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Writes the results, and stops the trainer if all members have stopped."""
        own_seconds = {id(member): member.stopwatch.read() for member in cohort.members}
        # what an interrupted epoch took before the resume is no part of what was measured now
        now_seconds = {
            id(member): own_seconds[id(member)] - (member.stopwatch.energy.seconds or 0.0) for member in cohort.members
        }
        cached_seconds = None if cohort.teacher is None else cohort.teacher.cached_seconds()
        batch_seconds, teacher_seconds = cohort.shared_seconds(
            self._training_seconds - sum(now_seconds.values()), len(trainer.train_dataloader.loader)
        )
        work = sum(now_seconds.values()) + batch_seconds + sum(teacher_seconds.values())
        epoch, members, corrupt = cohort.epoch, cohort.active_members, _corrupt_files(trainer)
        now = time.perf_counter()
        checkpoint = now - self._last_checkpoint >= self._checkpoint_seconds
        self._last_checkpoint = now if checkpoint else self._last_checkpoint
        for member in members:
            member.corrupt |= corrupt
            shared, cached = batch_seconds, None
            of_teacher = cohort.teacher_seconds_of(member, teacher_seconds)
            if of_teacher is not None:
                shared, cached = batch_seconds + of_teacher + (cached_seconds or 0.0), cached_seconds
            divergence = None
            with member.stopping_on_errors():
                divergence = member.end_epoch(epoch, own_seconds[id(member)], shared, len(members), cached)
            if divergence is not None:
                member.writer.write_divergence(member, divergence)
                continue
            if member.stopped:
                continue  # its method raised an error, which was reported
            joules = divide(self._joules, now_seconds[id(member)] + shared, work)
            add_joules((member.history or member.preparation.history)[-1], member.stopwatch.energy.with_rest(joules))
            member.stopwatch.energy = EpochEnergy()
            if checkpoint or member.next_epoch in (0, member.trial.epochs):
                member.writer.write_epoch(member)
            else:
                member.writer.write_row(member)
        trainer.train_dataloader.loader.set_epoch(epoch + 1)
        if all(member.stopped for member in cohort.members):
            trainer.should_stop = True


class ProgressReporter(pl.Callback):
    """Reports the position in the epoch, at most twice a second."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._epoch_start = self._last_report = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = self._last_report = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, cohort: CohortModule, outputs: Any, batches: Sequence[Batch], batch_idx: int
    ) -> None:
        """Reports if half a second has passed."""
        self._images += sum(len(batch.images) for batch in batches if not cohort.is_done(batch))
        now = time.perf_counter()
        if self._images and now - self._last_report > 0.5:
            self._last_report = now
            steps = len(trainer.train_dataloader.loader)
            self._report(cohort.epoch, batches[-1].step + 1, steps, self._images / (now - self._epoch_start))


class MidEpochCheckpoint(pl.Callback):
    """Saves the members' state within an epoch every ``seconds`` of training, and stops training on request.

    With several processes, a request to one of them makes all of them save and stop after the same step.

    Args:
        seconds: Time between two saves of an epoch.
        stop_requested: Called after every block of steps; True saves the state and raises ``StopRequested``.
    """

    def __init__(self, seconds: float, stop_requested: Callable[[], bool] = lambda: False) -> None:
        self._seconds, self._stop_requested = seconds, stop_requested
        self._last_save = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Starts the clock."""
        self._last_save = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, cohort: CohortModule, outputs: Any, batches: Sequence[Batch], batch_idx: int
    ) -> None:
        """Saves the state if it is time to, and stops if requested."""
        if cohort.is_done(batches[-1]):
            return
        now = time.perf_counter()
        save = rank() == 0 and now - self._last_save > self._seconds
        action = all_reduce_max(_STOP if self._stop_requested() else _SAVE if save else _CONTINUE)
        if action == _CONTINUE:
            return
        self._last_save = now
        step = batches[-1].step + 1
        note_energy_so_far(cohort)
        for member in cohort.active_members:
            member.writer.write_mid_epoch(member, step, gather_object(member.mid_epoch_state(step)))
        if action == _STOP:
            raise StopRequested


class KeepSigtermHandler(pl.Callback):
    """Keeps the process's own handler of SIGTERM during training.

    Lightning installs another one when training starts, which ends evaluation at once, in this process only.
    """

    def setup(self, trainer: pl.Trainer, cohort: CohortModule, stage: str) -> None:
        """Remembers the handler before Lightning replaces it."""
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Restores the handler."""
        signal.signal(signal.SIGTERM, self._handler)


def _corrupt_files(trainer: pl.Trainer) -> dict[str, str]:
    """Returns the reasons for decoding failures in all processes, by file."""
    loaders = (trainer.train_dataloader.loader, *trainer.val_dataloaders)
    reasons = {str(path): reason for loader in loaders for path, reason in loader.corrupt.items()}
    return {path: reason for of_process in all_gather_object(reasons) for path, reason in of_process.items()}
