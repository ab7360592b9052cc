"""A cohort's member whose steps and evaluation are recorded, if they are the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kd_bench.methods.base import Method
from kd_bench.training.forward_pass import compiles_students
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.training.observed_step import ObservedBatch, Observer, Reads, global_generators
from kd_bench.training.recorded_function import RecordedFunction
from kd_bench.training.recorder import Lane
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding

#: Steps before the first recording. The first makes the optimiser's state, a method may prepare in the second what
#: depends on the first, and the last is observed.
_STEPS_BEFORE = 3


class RecordedMember:
    """Trains and evaluates a member on batches that are always the same tensors.

    Its methods are called inside the lane's ``running()``.

    Args:
        member: The member.
        lane: Where its operations are queued.
        device: Its device.

    Attributes:
        lane: The argument.
        seconds_per_step: Time of a replay when nothing else runs; None until it was measured.
    """

    def __init__(self, member: StudentModule, lane: Lane, device: torch.device) -> None:
        self._member, self.lane, self._device = member, lane, device
        self._step = RecordedFunction([member.train_sums])
        self._evaluation = RecordedFunction([member.test_sums, member.extra_sums])
        self._steps_made = 0
        self._was_evaluated = False
        self._observed_epoch: int | None = None
        self._epoch: int | None = None
        self._rates: list[float] = []
        self._reads = Reads()
        # What a plug-in does at the end of an epoch may change any object that its step reads.
        ends_epochs = type(member.method).on_epoch_end is not Method.on_epoch_end
        self._changes_unseen = ends_epochs and member.trial.method.source is not None
        compiled = compiles_students(member.trial.compile)
        self._observer = Observer(
            [member.network, member.method], member.optimizer, device, watch_operators=not compiled
        )
        self.seconds_per_step: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the step is recorded, or known to be run without a recording."""
        return self._step.is_recorded or self._step.reason is not None or self._member.stopped

    def move(self, lane: Lane) -> None:
        """Forgets the recordings. The next ones are made on another lane, after a step and an evaluation there."""
        self.lane = lane
        self._observed_epoch = None
        self._was_evaluated = False
        self._step.forget()
        self._evaluation.forget()

    def train(self, batch: Batch, step: Tensor, teacher: Outputs | None) -> None:
        """Trains on a batch.

        If a number that the recorded step depends on has changed, the step is observed before it is recorded again. It
        may have other operations: a parameter that had no gradient before gets its first one, and the optimiser makes
        state for it, which must not be part of a recording, because a replay would make it again. Between epochs, the
        method's ``on_epoch_end`` may change a number or replace a tensor, and so may a smaller last batch.

        Args:
            batch: A batch whose tensors are the same in every call.
            step: The batch's step as a tensor, the same in every call.
            teacher: The teacher's outputs, the same tensors in every call; None without a teacher.

        Raises:
            NoMemoryToRecord: Then nothing has changed.
        """
        member, part = self._member, MicroBatch(self._member.with_generator(batch), step_tensor=step)
        with member.stopping_on_errors():
            if batch.epoch != self._epoch:
                self._epoch = batch.epoch
                self._forget_what_has_changed()
            if self._step.reason is not None or self._steps_made < _STEPS_BEFORE - 1:
                with self._timing():
                    self._run(part, teacher)
            elif not self._is_observed_for(batch.epoch):
                self._step.forget()
                with self._timing():
                    self._observe(part, teacher)
            elif self._step.is_recorded:
                self._replay(part)
            else:
                self._record(part, teacher)
            self._steps_made += 1

    def _forget_what_has_changed(self) -> None:
        """Forgets the recordings if they may have numbers or tensors that network and method no longer have."""
        if self._observed_epoch is not None and (self._changes_unseen or self._observer.is_changed()):
            self._observed_epoch = None
            self._was_evaluated = False
            self._evaluation.forget()

    def _is_observed_for(self, epoch: int) -> bool:
        """Whether the numbers of the observed step are those of an epoch."""
        if self._observed_epoch is None or self._rates != self._current_rates():
            return False
        return self._reads.hold_in(self._observed_epoch, epoch)

    def _current_rates(self) -> list[float]:
        """Returns the learning rates that are numbers and not tensors."""
        groups = self._member.optimizer.param_groups
        return [group["lr"] for group in groups if not isinstance(group["lr"], Tensor)]

    def _replay(self, part: MicroBatch) -> None:
        self._seed(part)
        with self._timing():
            self._step.replay()

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Inside, a step is made, whose time is added to the stopwatch."""
        stopwatch = self._member.stopwatch
        if self.seconds_per_step is None:
            with stopwatch.running(self._device):
                yield
        else:
            stopwatch.add(self.seconds_per_step)
            yield

    def _run(self, part: MicroBatch, teacher: Outputs | None) -> None:
        self._member.compute_step(teacher, part, _backward)

    def _seed(self, part: MicroBatch) -> None:
        if self._reads.generator and self._member.generator is not None:
            self._member.seed_step(seeding.METHOD, part)

    def _observe(self, part: MicroBatch, teacher: Outputs | None) -> None:
        """Makes a step, and looks for reasons not to record it."""
        member, states = self._member, list[Tensor]()
        self._observed_epoch, self._rates = part.batch.epoch, self._current_rates()

        def seed(stream: str, _: MicroBatch) -> None:
            states.append(global_generators(self._device))
            member.seed_step(stream, part)
            states.append(global_generators(self._device))

        with self._observer.watching():
            member.compute_step(teacher, self._noting_reads(part), _backward, seed)
        states.append(global_generators(self._device))
        self._observer.check_draws(states[1], states[2], "network")
        self._observer.check_draws(states[3], states[4], "method")
        self._report(self._observer.reasons)

    def _noting_reads(self, part: MicroBatch) -> MicroBatch:
        self._reads = Reads()
        return MicroBatch(ObservedBatch.of(part.batch, self._reads), step_tensor=part.step_tensor)

    def _report(self, reasons: list[str]) -> None:
        """Ends recording for the first reason, if there is one, and tells the user once."""
        reasons = reasons + (["the method reads the number of the step"] if "step" in self._reads.names else [])
        if reasons:
            self._step.reason = reasons[0]
            self._step.forget()
            self._member.writer.report_note(
                self._member, f"its steps are not recorded and take longer, because {reasons[0]}"
            )

    def _record(self, part: MicroBatch, teacher: Outputs | None) -> None:
        member, noting = self._member, self._noting_reads(part)
        self._step.record(
            self.lane,
            lambda: member.compute_step(teacher, noting, _backward, seed=lambda *_: None),
            lambda: self._run(part, teacher),
            lambda: [*self._observer.tensors(), *member.step_tensors()],
            before_replay=lambda: self._seed(part),
            generators=[] if member.generator is None else [member.generator],
        )
        self._report([] if self._step.reason is None else [self._step.reason])

    def evaluate(self, batch: Batch) -> None:
        """Evaluates the member on a batch of the test set, whose tensors are the same in every call.

        The evaluation of a member whose steps change Python's objects is not recorded, because it may read them.

        Raises:
            NoMemoryToRecord: Then nothing has changed.
        """
        member = self._member
        with member.stopping_on_errors():
            if self._evaluation.is_recorded:
                self._evaluation.replay()
            elif self._evaluation.reason is None and self._was_evaluated and self._observer.is_stable:
                self._evaluation.record(
                    self.lane,
                    lambda: member.evaluate(batch),
                    lambda: member.evaluate(batch),
                    lambda: [*self._observer.tensors(), *member.test_sums.tensors(), *member.extra_sums.tensors()],
                )
                if self._evaluation.reason is not None:
                    reason = f"its evaluation is not recorded and takes longer, because {self._evaluation.reason}"
                    member.writer.report_note(member, reason)
            else:
                member.evaluate(batch)
                self._was_evaluated = True


def _backward(loss: Tensor) -> None:
    loss.backward()
