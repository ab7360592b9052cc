"""Runs a cohort's steps and evaluation on a GPU: recorded once, and replayed side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.training.recorded_function import NoMemoryToRecord, RecordedFunction
from kd_bench.training.recorded_member import RecordedMember
from kd_bench.training.recorder import Lane, Recorder
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.training.student import StudentModule
from kd_bench.training.teacher import Teacher
from kd_bench.types import Batch, Outputs

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Steps after all recordings in which the parts of a step run one after another, so that their times can be measured.
TIMED_STEPS = 5


@dataclass
class SharedTimes:
    """Seconds per step of what the members share: the batch, and the teacher's passes by batch-norm mode."""

    batch: float
    teacher: dict[TeacherBatchNorm, float]


class FixedBatch:
    """A batch whose tensors keep their place in memory. Each batch is copied into them."""

    def __init__(self, batch: Batch) -> None:
        self._tensors = [torch.empty_like(tensor) for tensor in batch.tensors()]
        self.step = torch.zeros((), dtype=torch.int64, device=batch.images.device)

    def fits(self, batch: Batch) -> bool:
        """Whether a batch has tensors of the same shapes and types."""
        pairs = zip(batch.tensors(), self._tensors, strict=True)
        return all(new.shape == old.shape and new.dtype == old.dtype for new, old in pairs)

    def fill(self, batch: Batch) -> Batch:
        """Copies a batch into the tensors, and returns the batch of these tensors."""
        for new, old in zip(batch.tensors(), self._tensors, strict=True):
            old.copy_(new)
        self.step.fill_(batch.step)
        images, labels, index, *second = self._tensors
        second_images = second[0] if second else None
        return Batch(images, labels, index, batch.epoch, batch.step, batch.views, second_images=second_images)


class RecordedTeacher:
    """Runs the teacher in one batch-norm mode on batches that are the same tensors, as its outputs are."""

    def __init__(self, teacher: Teacher, norm_mode: TeacherBatchNorm, lane: Lane, device: torch.device) -> None:
        self._teacher, self._norm_mode, self.lane, self._device = teacher, norm_mode, lane, device
        self._function = RecordedFunction()
        self._outputs: Outputs | None = None
        self.stopwatch = Stopwatch()

    @property
    def is_settled(self) -> bool:
        """Whether the pass is recorded, or known to be run without a recording."""
        return self._function.is_recorded or self._function.reason is not None

    def __call__(self, batch: Batch, timed: bool) -> Outputs:
        """Returns the outputs for a batch, inside the lane's ``running()``.

        Raises:
            NoMemoryToRecord: Then nothing has changed.
        """
        if self._outputs is None:
            self._outputs = self._teacher(batch, self._norm_mode).map(lambda tensor: tensor.clone())
        elif self.is_settled:
            with self.stopwatch.running(self._device) if timed else nullcontext():
                self._function.replay() if self._function.is_recorded else self._run(batch)
        else:
            tensors = list(self._outputs.tensors())
            self._function.record(self.lane, lambda: self._run(batch), lambda: self._run(batch), lambda: tensors)
            if self._function.reason is not None:
                log.warning("the teacher's pass is not recorded, because %s", self._function.reason)
        return self._outputs

    def _run(self, batch: Batch) -> None:
        assert self._outputs is not None
        outputs = self._teacher(batch, self._norm_mode)
        for old, new in zip(self._outputs.tensors(), outputs.tensors(), strict=True):
            old.copy_(new)

    def move(self, lane: Lane) -> None:
        """Forgets the recording. The next one is made on another lane, after a pass there.

        At a lane's first operation, libraries allocate memory, which cannot be recorded.
        """
        self.lane, self._outputs = lane, None
        self._function.forget()


class RecordedCohort:
    """Runs the steps and the evaluation of a cohort on batches of one size.

    The teacher's passes come first, then the members' steps, each in a lane of its own. If the memory does not suffice
    for all recordings at once, all operations are in one lane, and their recordings share memory.

    When everything is recorded, the parts of a few steps run one after another, so that their times can be measured.
    The times of later steps, whose parts run at the same time, are taken to be the same.

    Args:
        members: All members of the cohort.
        teacher: The teacher; None without one.
        epoch: The first epoch; negative if it belongs to a preparation.
        recorder: Makes the lanes.
        device: The device.
    """

    def __init__(
        self,
        members: Sequence[StudentModule],
        teacher: Teacher | None,
        epoch: int,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self._recorder = recorder
        lanes = recorder.lanes(len(members) + 1, one_queue=False)
        self._one_queue = False
        self._teachers: dict[TeacherBatchNorm, RecordedTeacher] = {}
        if teacher is not None:
            modes = teacher.needs_in(epoch)
            self._teachers = {mode: RecordedTeacher(teacher, mode, lanes[0], device) for mode in modes}
        self._recorded = {
            id(member): RecordedMember(member, lane, device) for member, lane in zip(members, lanes[1:], strict=True)
        }
        self._batches: dict[str, FixedBatch] = {}
        self._timer = _StepTimer(recorder)

    def accepts(self, batch: Batch, kind: Literal["train", "test"] = "train") -> bool:
        """Whether a batch has the size of the first one of its kind."""
        if kind not in self._batches:
            self._batches[kind] = FixedBatch(batch)
        return self._batches[kind].fits(batch)

    @property
    def times(self) -> SharedTimes | None:
        """Times of what the members share; None until they were measured."""
        return self._timer.times

    def train(self, batch: Batch, members: Sequence[StudentModule]) -> None:
        """Trains members on a batch that it accepts."""
        fixed, timer = self._batches["train"], self._timer
        recorded = [(member, self._recorded[id(member)]) for member in members]
        settled = all(part.is_settled for _, part in recorded)
        settled = settled and all(teacher.is_settled for teacher in self._teachers.values())
        timed = settled and timer.times is None
        if timed:
            timer.begin(batch.epoch, [member.stopwatch for member in members])
        filled = fixed.fill(batch)
        outputs: dict[TeacherBatchNorm, Outputs] = {}
        for norm_mode, teacher in self._teachers.items():
            outputs[norm_mode] = self._run(teacher, lambda teacher=teacher: teacher(filled, timed))  # type: ignore[misc]
            teacher.lane.join()
        for member, part in recorded:
            taught = outputs.get(member.method.teacher_batch_norm)
            self._run(part, lambda part=part, taught=taught: part.train(filled, fixed.step, taught))  # type: ignore[misc]
            if timed:
                part.lane.join()
        for _, part in recorded:
            part.lane.join()
        if timed and timer.end(batch.epoch, {mode: teacher.stopwatch for mode, teacher in self._teachers.items()}):
            for (_, part), seconds in zip(recorded, timer.member_seconds, strict=True):
                part.seconds_per_step = seconds

    def evaluate(self, batch: Batch, members: Sequence[StudentModule]) -> None:
        """Evaluates members on a batch of the test set that it accepts."""
        filled = self._batches["test"].fill(batch)
        parts = [self._recorded[id(member)] for member in members]
        for part in parts:
            self._run(part, lambda part=part: part.evaluate(filled))  # type: ignore[misc]
        for part in parts:
            part.lane.join()

    @contextmanager
    def in_lane_of(self, member: StudentModule) -> Iterator[None]:
        """Inside, operations are queued on a member's lane, for a step on a batch of another size, without a recording.

        Torch's AccumulateGrad requires that a parameter's gradients are always added up in the same queue.
        """
        lane = self._recorded[id(member)].lane
        with lane.running():
            yield
        lane.join()

    def _run(self, part: RecordedMember | RecordedTeacher, function: Callable[[], T]) -> T:
        """Calls a function in a part's lane. If memory is short, all lanes become one."""
        try:
            with part.lane.running():
                return function()
        except NoMemoryToRecord:
            if self._one_queue:
                raise
        # Not in the except block, because the error keeps alive the memory of what could not be recorded.
        log.info("memory does not suffice to run the members side by side, so they run one after another")
        self._use_one_queue()
        with part.lane.running():
            return function()

    def _use_one_queue(self) -> None:
        self._recorder.synchronize()
        self._one_queue = True
        parts: list[RecordedMember | RecordedTeacher] = [*self._recorded.values(), *self._teachers.values()]
        for part, lane in zip(parts, self._recorder.lanes(len(parts), one_queue=True), strict=True):
            part.move(lane)


class _StepTimer:
    """Measures the times of the parts of a few steps that run one after another.

    Attributes:
        times: The result for what the members share; None until it is known.
        member_seconds: The result for the members, in seconds per step.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._steps = 0
        self._seconds = 0.0
        self._last_end: tuple[int, float] | None = None
        self._begin = 0.0
        self._stopwatches: list[Stopwatch] = []
        self._before: list[float] = []
        self.times: SharedTimes | None = None
        self.member_seconds: list[float] = []

    def begin(self, epoch: int, stopwatches: list[Stopwatch]) -> None:
        """Begins a step of these members."""
        if stopwatches != self._stopwatches:  # a member has stopped: begins again
            self._stopwatches, self._steps, self._seconds, self._last_end = stopwatches, 0, 0.0, None
            self._before = [stopwatch.read() for stopwatch in stopwatches]
        self._recorder.synchronize()
        # The time since the last step is that of the loader, unless an evaluation was between them.
        last = self._last_end
        self._begin = last[1] if last is not None and last[0] == epoch else time.perf_counter()

    def end(self, epoch: int, teachers: Mapping[TeacherBatchNorm, Stopwatch]) -> bool:
        """Ends a step. Returns whether it was the last one."""
        self._recorder.synchronize()
        now = time.perf_counter()
        self._last_end = (epoch, now)
        self._seconds += now - self._begin
        self._steps += 1
        if self._steps < TIMED_STEPS:
            return False
        seconds = [stopwatch.read() for stopwatch in self._stopwatches]
        for stopwatch, before, of_member in zip(self._stopwatches, self._before, seconds, strict=True):
            stopwatch.add(before + of_member)
        of_teacher = {norm_mode: stopwatch.read() / TIMED_STEPS for norm_mode, stopwatch in teachers.items()}
        self.member_seconds = [of_member / TIMED_STEPS for of_member in seconds]
        rest = max(0.0, (self._seconds - sum(seconds)) / TIMED_STEPS - sum(of_teacher.values()))
        self.times = SharedTimes(rest, of_teacher)
        return True
