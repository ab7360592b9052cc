"""What the process that times a cohort reads and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimingJob:
    """A cohort to time.

    Attributes:
        trials: Settings of the cohort's members.
        teacher: File of the teacher's weights; None without a teacher, or if the file is missing.
        data: Folder of data sets; None for the default.
        device: ``cpu`` or ``cuda:<n>``.
        threads: CPU threads of one operation.
        workers: Processes that decode images, for data sets that are not held in memory.
        steps: Steps to time if ``seconds`` allow; None for as many as fit into a third of ``seconds``, at least 8.
        seconds: How long the timing may take once the cohort is built, roughly.
    """

    trials: list[dict[str, Any]]
    teacher: str | None
    data: str | None
    device: str
    threads: int
    workers: int
    steps: int | None
    seconds: float


@dataclass(frozen=True)
class EpochTime:
    """Seconds of an epoch of a cohort.

    Attributes:
        shared: Loading images and the teacher's passes, independent of the number of students.
        own: Forward and backward passes and updates of each student.
        evaluation: Evaluation of all students.
        checkpoint: Saving the checkpoints of all students.
        startup: Time before the first epoch, once per process.
    """

    shared: float
    own: tuple[float, ...]
    evaluation: float
    checkpoint: float = 0.0
    startup: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the epoch, without the startup."""
        return self.shared + sum(self.own) + self.evaluation + self.checkpoint

    @property
    def unshared_seconds(self) -> float:
        """The same if each student were trained in a process of its own."""
        return self.seconds + (len(self.own) - 1) * self.shared


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
