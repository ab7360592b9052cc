"""What the process that times a cohort reads and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_bench.config.trial import Trial
from kd_bench.launch.options import RunOptions


@dataclass(frozen=True)
class TimingJob:
    """A cohort to time.

    Attributes:
        trials: The cohort's members.
        weights: File of the teacher's weights; None without a teacher, or if the file is missing.
        options: How the recipe would be run.
        device: ``cpu`` or ``cuda:<n>``.
        steps: Steps to time if ``seconds`` allow; None for as many as fit into a third of ``seconds``, at least 8.
        seconds: How long the timing may take once the cohort is built, roughly.
    """

    trials: Sequence[Trial]
    weights: Path | None
    options: RunOptions
    device: str
    steps: int | None
    seconds: float


@dataclass(frozen=True)
class EpochTime:
    """Seconds of an epoch of a cohort.

    Attributes:
        shared: Loading images and the teacher's passes, independent of the number of students.
        students: Forward and backward passes and updates of each student.
        evaluation: Evaluation of all students.
        checkpoint: Saving the checkpoints of all students.
        startup: Time before the first epoch, once per process.
    """

    shared: float
    students: tuple[float, ...]
    evaluation: float
    checkpoint: float = 0.0
    startup: float = 0.0

    @property
    def training(self) -> float:
        """Seconds without evaluation, checkpoint and startup."""
        return self.shared + sum(self.students)

    @property
    def seconds(self) -> float:
        """Seconds of the epoch, without the startup."""
        return self.training + self.evaluation + self.checkpoint

    @property
    def unshared_seconds(self) -> float:
        """The same if each student were trained in a process of its own."""
        return self.seconds + (len(self.students) - 1) * self.shared

    @classmethod
    def joined(cls, members: Sequence[tuple[EpochTime, int]]) -> EpochTime:
        """Returns the time of a cohort whose members were timed in others: the times, and their numbers there."""
        times = [time for time, _ in members]
        return cls(
            shared=max(time.shared for time in times),
            students=tuple(time.students[index] for time, index in members),
            evaluation=sum(time.evaluation / len(time.students) for time in times),
            checkpoint=sum(time.checkpoint / len(time.students) for time in times),
            startup=max(time.startup for time in times),
        )

    def preparation_seconds(self, epochs: Sequence[int], *, unshared: bool = False) -> float:
        """Returns the seconds of the epochs before the students' own, in which nothing is tested.

        Their steps are taken to be as long as those of the students' own epochs.

        Args:
            epochs: Number of these epochs of each student, 0 for one that waits meanwhile.
            unshared: Assume that every student is trained in a process of its own.
        """
        shared = sum(epochs) if unshared else max(epochs)
        return self.shared * shared + sum(seconds * count for seconds, count in zip(self.students, epochs, strict=True))


@dataclass(frozen=True)
class Timing:
    """The measured time of a cohort.

    Attributes:
        epoch: Seconds of an epoch.
        steps: Timed steps; 0 if the pieces of a step were timed instead.
        images: Images of a timed step, or images that the pieces were timed on.
        memory: Most bytes in use by the process, or on a GPU by torch.
        stand_in: Reason that random images replaced those of the data set; empty if they did not.
        undecoded: Whether ``epoch.shared`` lacks the time to decode images.
    """

    epoch: EpochTime
    steps: int
    images: int
    memory: int = 0
    stand_in: str = ""
    undecoded: bool = False
