"""Times the pieces of a cohort's step one by one, on any number of images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from kd_bench.config.trial import Trial
from kd_bench.estimate.step_cost import views_per_image
from kd_bench.launch.options import RunOptions
from kd_bench.training.cohort import CohortModule
from kd_bench.training.forward_pass import precision_context
from kd_bench.training.loaders import Images, loaders
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.types import Batch


@dataclass(frozen=True)
class PieceTimes:
    """Seconds of the pieces of a step: per image, except for ``update``, which is per step.

    Attributes:
        images: Number of images that were used.
        data: Loading.
        teacher: The teacher's pass.
        students, update, evaluation: Forward and backward pass, optimiser's step, and evaluation of each student.
    """

    images: int
    data: float
    teacher: float
    students: list[float]
    update: list[float]
    evaluation: list[float]

    @property
    def seconds_per_image(self) -> float:
        """Seconds of a training step per image."""
        return self.data + self.teacher + sum(self.students) + sum(self.update) / self.images


@dataclass
class PieceTimer:
    """Times the pieces of the step of a cohort, which is on the device.

    Attributes:
        undecoded: Whether the images are placeholders that cannot be decoded.
        seconds: Seconds spent so far.
    """

    cohort: CohortModule
    images: Images
    device: torch.device
    options: RunOptions
    undecoded: bool
    seconds: float = 0.0

    @property
    def trial(self) -> Trial:
        """Any of the cohort's trials."""
        return self.cohort.members[0].trial

    def time(self, images: int) -> PieceTimes:
        """Runs every piece once, each student's pass twice, on this number of images.

        A batch of adversarial training may have two views of each image, both of which are in ``batch.images``.
        """
        start = synchronized_time(self.device)
        batch, loading_seconds = self._load_batch(images)
        images = len(batch.images) // views_per_image(self.trial)
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(-1)
        self.cohort.train()
        with torch.no_grad(), precision_context(self.trial.precision, self.device):
            teacher, outputs = self._run(self.cohort.teacher_outputs, batch)
        students, update, evaluation = [], [], []
        for member in self.cohort.members:
            teacher_outputs = outputs.get(member.method.teacher_batch_norm)
            passes = []
            for last in (False, True):  # only the last micro-batch updates the weights
                part = MicroBatch(batch, last=last)
                passes.append(self._run(member.step, teacher_outputs, part, torch.Tensor.backward)[0])
            students.append(min(passes) / images)
            update.append(max(0.0, passes[1] - passes[0]))
            member.eval()
            evaluation.append(self._run(member.evaluate, replace(batch, labels=labels))[0] / len(batch.images))
            member.train()
        self.seconds += synchronized_time(self.device) - start
        data, teacher = loading_seconds / images, teacher / images if outputs else 0.0
        return PieceTimes(images, data, teacher, students, update, evaluation)

    def _run(self, function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
        """Calls a function. Returns the seconds and the result."""
        start = synchronized_time(self.device)
        result = function(*args)
        return synchronized_time(self.device) - start, result

    def _load_batch(self, size: int) -> tuple[Batch, float]:
        """Returns a batch and the seconds to load it."""
        pipeline = self.trial.pipeline
        if self.undecoded:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(size, *self.images.image_shape, generator=generator).to(self.device)
            index = torch.arange(size, device=self.device)
            labels = index % self.images.num_classes
            if pipeline and pipeline.mixes:
                labels = F.one_hot(labels, self.images.num_classes).float()
            return Batch(images, labels, index, 0, 0), 0.0
        trial = self.trial.model_copy(update={"batch_size": max(size, 2), "micro_batch": None})
        train, test = loaders(trial, self.images, self.device, 0, self.options.data)
        try:
            batches = iter(train)
            batch = next(batches)  # the first one also sets things up
            start = time.perf_counter()
            batch = next(batches, batch)
            seconds = time.perf_counter() - start
        finally:
            train.close()
            test.close()
        return batch, seconds / (self.options.workers or 1) if pipeline is not None else seconds


def synchronized_time(device: torch.device) -> float:
    """Returns the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
