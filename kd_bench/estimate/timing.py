"""Times a few steps of a cohort in a process of its own: ``python -m kd_bench.estimate.timing``.

Reads a job as a line of JSON and writes the answer as a line of JSON. The cohort is built and trained as in
``kd_bench.launch.train_cohort``, but nothing is kept. If a single step would take too long, the teacher and each
student are timed on a few images instead.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import Trial
from kd_bench.trials.environment import peak_memory
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    import torch

    from kd_bench.training.cohort import CohortModule
    from kd_bench.training.fit import Images
    from kd_bench.training.student import StudentModule
    from kd_bench.types import Batch

#: Steps before those that count, those that count at least, and batches of the test set that are timed.
WARM_UP = 1
STEPS = 8
TESTED = 1

#: Images of the first look, which tells how long a step would take, and seconds within which it is taken twice.
LOOK = 2
QUICK = 2.0


@dataclass(frozen=True)
class TimingJob:
    """What is to be timed.

    Attributes:
        trials: Settings of the cohort's members.
        teacher: The file of the teacher's weights; None where nothing teaches, or its weights are not here.
        data: Where data sets are; None for the default.
        device: ``cpu``, or ``cuda:<n>``.
        threads: Threads of one operation on the CPU.
        workers: Processes that decode images, where these are not held in memory.
        steps: Full steps to time, if that can be done in ``seconds``; None for as many as a third of that allows, and
            ``STEPS`` at least.
        seconds: How long the timing may take, about, once all is built.
    """

    trials: list[dict[str, Any]]
    teacher: str | None
    data: str | None
    device: str
    threads: int
    workers: int
    steps: int | None
    seconds: float


@dataclass
class Timing:
    """What was found. All times are in seconds.

    Attributes:
        shared: Of an epoch's training: images and teacher.
        own: Of an epoch's training: each student's forward and backward passes and steps.
        evaluation: Of an epoch: the students' evaluation.
        checkpoint: Of an epoch: the students' checkpoints.
        teacher_image: The teacher's pass over one image; 0 where it was not timed by itself.
        startup: Until training begins.
        memory: Bytes that the process (on a GPU: torch) had in use at most.
        steps: Full steps that were timed; 0 where it was few images by themselves.
        images: Images of each of them, or the few.
        stand_in: Why other images stood in for the set's; empty where none did.
        undecoded: Whether the images' decoding is not in ``shared``.
    """

    shared: float
    own: list[float]
    evaluation: float
    checkpoint: float
    teacher_image: float
    startup: float
    memory: int
    steps: int
    images: int
    stand_in: str = ""
    undecoded: bool = False


@dataclass
class _TimingWriter:
    """Takes the time of what a trial's folder would do with an epoch."""

    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def epoch(self, member: StudentModule) -> None:
        import torch

        begin = time.perf_counter()
        content = io.BytesIO()
        torch.save(member.state(), content)
        self.seconds += time.perf_counter() - begin

    def save_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """Of no importance here."""

    def diverged(self, member: StudentModule, reason: str) -> None:
        """Of no importance here."""

    def crashed(self, member: StudentModule, reason: str) -> None:
        self.failed.append(f"{member.trial.method.name}: {reason}")


class _Clock:
    """The time, once the device has done all that it was told."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Few:
    """The first batches of a loader, and when they were asked for."""

    def __init__(self, loader: Any, batches: int, clock: _Clock, at: Callable[[int], None] = lambda step: None) -> None:
        self._loader, self._batches, self._clock, self._at = loader, min(batches, len(loader)), clock, at
        self.asked: list[float] = []
        self.left = 0.0
        self.begin = 0.0
        self.images = 0

    @property
    def corrupt(self) -> dict[Path, str]:
        found: dict[Path, str] = self._loader.corrupt
        return found

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)
        self.left = self._clock()  # at the end of an epoch, once everything else is done

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        begin = time.perf_counter()
        batches = iter(self._loader)
        self.begin = time.perf_counter() - begin
        for step in range(self._batches):
            self._at(step)
            self.asked.append(self._clock())
            batch = next(batches)
            self.images += len(batch.images)
            yield batch


def measure(job: TimingJob, born: float) -> Timing:
    """Builds the cohort and times it.

    Args:
        job: What is to be timed.
        born: When the process began, in seconds since 1970.

    Raises:
        UserError: Where networks and method do not fit together, or images are not here and cannot be stood in for.
    """
    import torch

    from kd_bench.estimate import placeholders
    from kd_bench.training import fit as training
    from kd_bench.training.cohort import DistillationCohort, SupervisedCohort

    torch.set_num_threads(job.threads)
    trials = [Trial.model_validate_json(json.dumps(one)).model_copy(update={"epochs": 1}) for one in job.trials]
    first, device = trials[0], torch.device(job.device)
    images, stand_in = placeholders.images(first.dataset, first.pipeline, Path(job.data) if job.data else None)
    teacher = view = None
    if first.teacher is not None:
        if job.teacher is None:
            from kd_bench.estimate import step_cost

            teacher, view = step_cost.untrained(first.teacher, images, first.channels_last)
        else:
            teacher, view = training.load_network(first.teacher, Path(job.teacher), images, first.channels_last)
    writer = _TimingWriter()
    members = [training.build_student(trial, images, teacher, writer) for trial in trials]
    cohort: CohortModule = (
        DistillationCohort(members, teacher, view) if teacher is not None else SupervisedCohort(members)
    )
    cohort.to(device)
    pieces = _Pieces(cohort, images, device, job, bool(stand_in))
    look = pieces.time(LOOK)
    startup = time.time() - born - pieces.spent
    if pieces.spent < QUICK:  # the first pass has more to do than the others
        look = pieces.time(LOOK)
    step = look.an_image * first.batch_size
    fitting = int(job.seconds / step) - WARM_UP
    steps = min(job.steps or max(STEPS, fitting // 3), fitting)
    if steps < 1 or (stand_in and first.pipeline is not None):
        found = _scaled(pieces, look, writer)
    else:
        found = _whole(cohort, images, device, job, steps, writer)
        found.teacher_image = look.teacher
    if writer.failed:
        raise UserError("; ".join(dict.fromkeys(writer.failed)))
    found.startup, found.stand_in, found.memory = startup, stand_in, peak_memory(device)
    return found


@dataclass(frozen=True)
class _Look:
    """Seconds an image (and a step's update) that pieces of a step take by themselves."""

    images: int
    data: float
    teacher: float
    own: list[float]
    update: list[float]
    evaluation: list[float]

    @property
    def an_image(self) -> float:
        return self.data + self.teacher + sum(self.own) + sum(self.update) / self.images


class _Pieces:
    """Times the pieces of a step by themselves, on any number of images."""

    def __init__(
        self, cohort: CohortModule, images: Images, device: torch.device, job: TimingJob, stand_in: bool
    ) -> None:
        self.cohort, self.images, self.job = cohort, images, job
        self._device, self._stand_in = device, stand_in
        self._clock = _Clock(device)
        self.spent = 0.0
        self.undecoded = False

    def time(self, count: int) -> _Look:
        """One pass over ``count`` images."""
        import torch

        from kd_bench.training.student import MicroBatch, precision_context

        begin = self._clock()
        settings = self.cohort.members[0].trial
        batch, data = self._batch(count)
        count = len(batch.images)
        self.cohort.train()
        start = self._clock()
        with torch.no_grad(), precision_context(settings.precision, self._device):
            taught = self.cohort.teach(batch)
        teacher = (self._clock() - start) / count if taught else 0.0
        own, update, evaluation = [], [], []
        for member in self.cohort.members:
            times = []
            for last in (False, True):
                start = self._clock()
                member.step(
                    taught.get(member.method.teacher_batch_norm), MicroBatch(batch, last=last), torch.Tensor.backward
                )
                times.append(self._clock() - start)
            own.append(min(times) / count)
            update.append(max(0.0, times[1] - times[0]))
            evaluation.append(self._evaluate(member, batch))
        self.spent += self._clock() - begin
        return _Look(count, data, teacher, own, update, evaluation)

    def _evaluate(self, member: StudentModule, batch: Batch) -> float:
        hard = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(-1)
        member.eval()
        start = self._clock()
        member.evaluate(replace(batch, labels=hard))
        took = (self._clock() - start) / len(batch.images)
        member.train()
        return took

    def _batch(self, count: int) -> tuple[Batch, float]:
        """A batch, and the seconds that an image of it took."""
        import torch

        from kd_bench.training import fit as training
        from kd_bench.types import Batch

        trial = self.cohort.members[0].trial
        if self._stand_in and trial.pipeline is not None:
            self.undecoded = True
            draws = torch.Generator().manual_seed(0)
            images = torch.randn(count, *self.images.image_shape, generator=draws).to(self._device)
            index = torch.arange(count, device=self._device)
            labels = index % self.images.num_classes
            if trial.pipeline.mixes:
                labels = torch.nn.functional.one_hot(labels, self.images.num_classes).float()
            return Batch(images, labels, index, 0, 0), 0.0
        small = trial.model_copy(update={"batch_size": max(count, 2), "micro_batch": None})
        data_dir = Path(self.job.data) if self.job.data else None
        train, test = training.loaders(small, self.images, self._device, 0, data_dir)
        try:
            batches = iter(train)
            batch = next(batches)
            begin = self._clock()
            batch = next(batches, batch)
            took = (self._clock() - begin) / len(batch.images)
        finally:
            train.close()
            test.close()
        if self.job.workers and trial.pipeline is not None:
            took /= self.job.workers
        return batch, took


def _whole(
    cohort: CohortModule, images: Images, device: torch.device, job: TimingJob, steps: int, writer: _TimingWriter
) -> Timing:
    from kd_bench.training import fit as training

    first = cohort.members[0].trial
    train, test = training.loaders(first, images, device, job.workers, Path(job.data) if job.data else None)
    warm = min(WARM_UP, len(train) - 1)
    own: list[float] = []

    def warmed(step: int) -> None:
        if step == warm:
            read()

    def tested(step: int) -> None:
        if step == 0:
            own.extend(read())

    def read() -> list[float]:
        return [member.watch.read() for member in cohort.members]

    trained_on, tested_on = (
        _Few(train, warm + steps, _Clock(device), warmed),
        _Few(test, TESTED, _Clock(device), tested),
    )
    try:
        training.fit(cohort, trained_on, tested_on, device)  # type: ignore[arg-type]
    finally:
        train.close()
        test.close()
    steps = len(trained_on) - warm
    scale = len(train) / steps
    took = tested_on.asked[0] - trained_on.asked[warm]
    tests = trained_on.left - tested_on.asked[0] - writer.seconds
    return Timing(
        shared=max(0.0, took - sum(own)) * scale + trained_on.begin,
        own=[one * scale for one in own],
        evaluation=max(0.0, tests) * len(images.test_labels) / max(1, tested_on.images),
        checkpoint=writer.seconds,
        teacher_image=0.0,
        startup=0.0,
        memory=0,
        steps=steps,
        images=first.batch_size,
    )


def _scaled(pieces: _Pieces, look: _Look, writer: _TimingWriter) -> Timing:
    cohort, job = pieces.cohort, pieces.job
    first, size = cohort.members[0].trial, len(pieces.images.train_labels)
    cost = look.data + look.teacher + 2 * sum(look.own) + sum(look.evaluation)  # as time() does it
    most = min(first.micro_batch or first.batch_size, int((job.seconds - pieces.spent) / cost) if cost else size)
    found = pieces.time(max(LOOK, most - most % 2))
    for member in cohort.members:
        writer.epoch(member)
    steps = max(1, size // first.batch_size)
    epoch = steps * first.batch_size
    return Timing(
        shared=(found.data + found.teacher) * epoch,
        own=[one * epoch + update * steps for one, update in zip(found.own, found.update, strict=True)],
        evaluation=sum(found.evaluation) * len(pieces.images.test_labels),
        checkpoint=writer.seconds,
        teacher_image=found.teacher,
        startup=0.0,
        memory=0,
        steps=0,
        images=found.images,
        undecoded=pieces.undecoded,
    )


def main() -> int:
    """Answers the job on the input."""
    import psutil

    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs into the log, not into the answer
    job = TimingJob(**json.loads(sys.stdin.readline()))
    try:
        found: dict[str, Any] = asdict(measure(job, psutil.Process().create_time()))
    except UserError as error:
        found = {"error": str(error)}
    answer.write(json.dumps(found) + "\n")
    answer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
