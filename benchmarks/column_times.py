"""The times of a column of Table 6: one pair, eight methods, one seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.pairs import METHODS
from benchmarks.step_times import StepTimes


@dataclass
class ColumnTimes:
    """The measurements of a pair. Lists have one entry per round, in CPU seconds of a step.

    Attributes:
        title: The pair.
        batch_size: Images of a batch.
        difference: Largest relative difference between the first losses of the suite and of the reference loop.
        flops: Floating-point operations of the cohort's step.
        peak_flops: Most floating-point operations per second that convolutions reach in this process.
        cohort: The cohort of all methods.
        logit_cohort: The cohort of the four logit methods.
        alone: Each method in a cohort of its own, by method.
        reference: Each method in the reference loop, by method.
        cached: KD alone, with the logits of its batch in the cache.
        floor: The parts that no training can omit, by part.
    """

    title: str
    batch_size: int
    difference: float
    flops: float = 0.0
    peak_flops: float = 0.0
    cohort: list[StepTimes] = field(default_factory=list)
    logit_cohort: list[StepTimes] = field(default_factory=list)
    alone: dict[str, list[StepTimes]] = field(default_factory=lambda: defaultdict(list))
    reference: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cached: list[StepTimes] = field(default_factory=list)
    floor: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.cohort)

    def one_by_one_seconds(self) -> list[float]:
        """Returns the seconds of all methods, each in a cohort of its own."""
        return [sum(self.alone[label][number].total for label in METHODS) for number in range(self.rounds)]

    def reference_seconds(self, labels: Sequence[str] = METHODS) -> list[float]:
        """Returns the seconds of these methods in the reference loop."""
        return [sum(self.reference[label][number] for label in labels) for number in range(self.rounds)]

    def floor_seconds(self) -> list[float]:
        """Returns the seconds of all parts of the floor."""
        return [sum(parts.values()) for parts in self.floor]
