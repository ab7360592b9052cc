"""CPU seconds of the parts of a cohort's step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from kd_bench.training.cohort import CohortModule
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch

#: Parts of a step. "rest" is bookkeeping: sums for the log, and whether the loss is finite.
PARTS = ("data", "teacher", "forward", "loss", "backward", "optimiser", "rest")


@dataclass(frozen=True)
class StepTimes:
    """CPU seconds of one step by member and part. The member of shared parts is ""."""

    seconds: Mapping[tuple[str, str], float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def part(self, *parts: str, member: str | None = None) -> float:
        """Returns the seconds of these parts, of one member or of all."""
        return sum(
            seconds
            for (name, part), seconds in self.seconds.items()
            if part in parts and (member is None or name == member)
        )


class StepTimer:
    """Times the parts of steps, one step at a time."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._member = ""
        self._last = 0.0

    def watch(self, member: StudentModule) -> None:
        """Adds hooks to a member: after the student's forward pass, and before and after the optimiser."""
        member.method.register_forward_pre_hook(lambda *_: self._end("forward"))
        member.optimizer.register_step_pre_hook(lambda *_: self._end("rest"))
        member.optimizer.register_step_post_hook(lambda *_: self._end("optimiser"))

    def step(self, cohort: CohortModule, batches: Iterator[Batch]) -> StepTimes:
        """Runs and times a step of a cohort of watched members, as ``CohortModule.training_step`` without Lightning."""
        self._seconds, self._member, self._last = defaultdict(float), "", time.process_time()
        batch = next(batches)
        self._end("data")
        outputs = cohort.teacher_outputs(batch)
        self._end("teacher")
        for member in cohort.members:
            self._member = member.trial.method.name
            member.step(outputs.get(member.method.teacher_batch_norm), MicroBatch(batch), self._backward)
            self._end("rest")
        return StepTimes(dict(self._seconds))

    def _end(self, part: str) -> None:
        """Counts the time since the last call as this part."""
        now = time.process_time()
        self._seconds[self._member, part] += now - self._last
        self._last = now

    def _backward(self, loss: Tensor) -> None:
        self._end("loss")
        loss.backward()
        self._end("backward")
