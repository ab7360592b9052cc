"""Times a few steps of a cohort.

The cohort is built and trained as in ``kd_bench.launch.train_cohort``, but no result is kept. If a single step would
take too long, the pieces of a step are timed on a few images instead.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kd_bench.config.trial import Trial
from kd_bench.estimate import placeholders
from kd_bench.estimate.piece_timing import PieceTimer, PieceTimes, synchronized_time
from kd_bench.estimate.step_cost import build_untrained_teacher, evaluated_images, with_usual_perturbations
from kd_bench.estimate.timing_job import EpochTime, Timing, TimingJob
from kd_bench.training.build import build_student, load_network
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule
from kd_bench.trials.environment import peak_memory
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError

#: Untimed steps at the beginning, fewest timed steps, and timed batches of the test set.
WARM_UP = 1
STEPS = 8
TEST_BATCHES = 1

#: Images of the first look at a step, which is repeated if it took less than ``REPEAT_BELOW`` seconds.
FEW_IMAGES = 2
REPEAT_BELOW = 2.0


@dataclass
class _TimingWriter(ResultWriter):
    """Measures the seconds that saving the members' states takes, and collects errors of methods."""

    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def write_epoch(self, member: StudentModule) -> None:
        start = time.perf_counter()
        torch.save(member.state(), io.BytesIO())
        self.seconds += time.perf_counter() - start

    def report_crash(self, member: StudentModule, reason: str) -> None:
        self.errors.append(f"{member.trial.method.name}: {reason}")


class _ShortLoader:
    """The first batches of a loader. Records the times of requests for batches, and of the end of an epoch.

    Before the batch with the number ``read_at``, it reads the students' stopwatches, which sets them to 0.
    """

    def __init__(self, loader: Any, batches: int, timer: PieceTimer, read_at: int) -> None:
        self._loader, self._batches, self._timer, self._read_at = loader, min(batches, len(loader)), timer, read_at
        self.student_seconds: list[float] = []
        self.corrupt = loader.corrupt
        self.request_times: list[float] = []
        self.epoch_end = self.iterator_seconds = 0.0
        self.images = 0

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)  # the last call of an epoch
        self.epoch_end = synchronized_time(self._timer.device)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        start = time.perf_counter()
        batches = iter(self._loader)
        self.iterator_seconds = time.perf_counter() - start
        for step in range(self._batches):
            if step == self._read_at:
                self.student_seconds = [member.stopwatch.read() for member in self._timer.cohort.members]
            self.request_times.append(synchronized_time(self._timer.device))
            batch = next(batches)
            self.images += len(batch.images)
            yield batch


def time_cohort(job: TimingJob, process_start: float) -> Timing:
    """Builds a cohort and times it in a process that began at ``process_start``, in seconds since 1970.

    Raises:
        UserError: If a network and a method do not fit together, if a method fails, or if images are missing and their
            number is unknown.
    """
    torch.set_num_threads(job.options.threads)
    trials = [_for_timing(trial) for trial in job.trials]
    first, device = trials[0], torch.device(job.device)
    images, stand_in = placeholders.images_or_placeholders(first.dataset, first.pipeline, job.options.data)
    teacher = view = None
    if first.teacher is not None and job.weights is None:
        teacher, view = build_untrained_teacher(first.teacher, images, first.channels_last)
    elif first.teacher is not None and job.weights is not None:
        teacher, view = load_network(first.teacher, job.weights, images, first.channels_last)
    writer = _TimingWriter()
    members = [build_student(trial, images, teacher, writer) for trial in trials]
    cohort = CohortModule(members, teacher, view).to(device)
    undecoded = bool(stand_in) and first.pipeline is not None
    timer = PieceTimer(cohort, images, device, job.options, undecoded)
    pieces = timer.time(FEW_IMAGES)
    startup = time.time() - process_start - timer.seconds
    if timer.seconds < REPEAT_BELOW:  # the first pass also sets things up
        pieces = timer.time(FEW_IMAGES)
    affordable = int(job.seconds / (pieces.seconds_per_image * first.batch_size)) - WARM_UP
    steps = min(job.steps or max(STEPS, affordable // 3), affordable)
    if steps < 1 or timer.undecoded:
        timing = _time_pieces(timer, pieces, job.seconds, writer)
    else:
        timing = _time_steps(timer, steps, writer)
    if writer.errors:
        raise UserError("; ".join(dict.fromkeys(writer.errors)))
    return replace(timing, epoch=replace(timing.epoch, startup=startup), stand_in=stand_in, memory=peak_memory(device))


def _for_timing(trial: Trial) -> Trial:
    """Returns the trial with one epoch, without preparation, and without generated images, which may be missing.

    The data set's own images, which then fill the batches, cost as much. The epoch has the usual perturbations.
    """
    trial, changes = with_usual_perturbations(trial), dict[str, Any](epochs=1)
    if trial.adversarial is not None:
        changes["adversarial"] = trial.adversarial.model_copy(update={"generated": None})
    return trial.without_preparation().model_copy(update=changes)


def _time_steps(timer: PieceTimer, steps: int, writer: _TimingWriter) -> Timing:
    """Times whole steps of the training, and scales them up to an epoch."""
    train, test = loaders(timer.trial, timer.images, timer.device, timer.options.workers, timer.options.data)
    warm_up = min(WARM_UP, len(train) - 1)
    short_train = _ShortLoader(train, warm_up + steps, timer, read_at=warm_up)
    short_test = _ShortLoader(test, TEST_BATCHES, timer, read_at=0)
    try:
        fit(timer.cohort, short_train, short_test, timer.device)  # type: ignore[arg-type]
    finally:
        train.close()
        test.close()
    students = short_test.student_seconds
    steps = len(short_train) - warm_up
    scale = len(train) / steps
    training_end = short_test.request_times[0]
    training_seconds = training_end - short_train.request_times[warm_up]
    evaluation = max(0.0, short_train.epoch_end - training_end - writer.seconds)
    epoch = EpochTime(
        shared=max(0.0, training_seconds - sum(students)) * scale + short_train.iterator_seconds,
        students=tuple(seconds * scale for seconds in students),
        evaluation=evaluation * evaluated_images(timer.images) / max(1, short_test.images),
        checkpoint=writer.seconds,
    )
    return Timing(epoch, steps, timer.trial.batch_size)


def _time_pieces(timer: PieceTimer, pieces: PieceTimes, seconds: float, writer: _TimingWriter) -> Timing:
    """Times the pieces of a step on as many images as fit into ``seconds``, and scales them up to an epoch."""
    trial, train_images = timer.trial, len(timer.images.train_labels)
    # timer.time() runs each student's pass twice
    per_image = pieces.data + pieces.teacher + 2 * sum(pieces.students) + sum(pieces.evaluation)
    affordable = int((seconds - timer.seconds) / per_image) if per_image else train_images
    images = min(trial.micro_batch or trial.batch_size, affordable)
    pieces = timer.time(max(FEW_IMAGES, images - images % 2))
    for member in timer.cohort.members:
        writer.write_epoch(member)
    steps = max(1, train_images // trial.batch_size)
    trained = steps * trial.batch_size
    epoch = EpochTime(
        shared=(pieces.data + pieces.teacher) * trained,
        students=tuple(
            seconds * trained + update * steps for seconds, update in zip(pieces.students, pieces.update, strict=True)
        ),
        evaluation=sum(pieces.evaluation) * evaluated_images(timer.images),
        checkpoint=writer.seconds,
    )
    return Timing(epoch, steps=0, images=pieces.images, undecoded=timer.undecoded)
