"""The pairs of Table 6 with random weights and random images, ready to be timed.

Nothing is read or downloaded, because the cost of a step does not depend on weights and images. Teachers have the batch
statistics of these images, so that their outputs are neither tiny nor huge.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.estimate.step_cost import DiscardingWriter, TeacherParts, build_untrained_teacher
from kd_bench.models import cards
from kd_bench.plan import plan
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.loaders import loaders
from kd_bench.training.logit_cache import LogitCache
from kd_bench.training.student import StudentModule
from kd_bench.training.teacher import OpenLogitCache
from kd_bench.types import Batch

CPU = torch.device("cpu")

#: The student without distillation, the rows of Table 6, and the methods that need logits only. DIST is not in Table 6.
ALONE = "none"
METHODS = ("fitnet", "rkd", "crd", "ofd", "reviewkd", "dkd", "kd", "ikl_kd")
LOGIT_METHODS = ("kd", "dkd", "ikl_kd", "dist")

#: Images of the training set, as many as CIFAR-100 has; CRD has banks with a row for each.
IMAGES = 50_000
#: Current epoch, from 0. It is after all warm-ups, so that no loss is multiplied by 0.
EPOCH = 20


def plan_pairs(
    quick: bool = False, source: str = "cifar100/table6", only: Sequence[str] = ()
) -> dict[str, dict[str, Trial]]:
    """Returns trials by pair and method: those of a recipe with DIST, or of one pair of tiny networks if ``quick``.

    Args:
        quick: Whether to plan the tiny pair.
        source: The recipe.
        only: Conditions that the trials must match, as for ``plan``.
    """
    overrides = ["methods.dist={}"]
    recipe = {
        "name": "quick",
        "extends": "cifar100/pairs_base.yaml",
        "batch_size": 8,
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "methods": {"crd": {"negatives": 50, "feature_dim": 16}},
    }
    pairs: dict[str, dict[str, Trial]] = {}
    for planned in plan(read_recipe(recipe if quick else source, overrides, trials=1), "benchmark", only):
        pairs.setdefault(pair_title(planned), {})[planned.label] = planned.trial
    return pairs


def pair_title(planned: PlannedTrial) -> str:
    """Returns the published names of a trial's teacher and student, e.g. "VGG13 -> MobileNet-V2"."""
    return f"{_published_name('teachers', planned.teacher)} -> {_published_name('students', planned.student)}"


@functools.cache
def _published_name(role: cards.Role, model: str) -> str:
    card = cards.find(role, "cifar100", model)
    return card.published_name if card else model


def random_images(size: int = IMAGES, test: int = 256) -> ArrayDataset:
    """Returns noise in the shape of CIFAR-100."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size + test, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(size + test) % 100
    names = tuple(map(str, range(100)))
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return ArrayDataset(pixels[:size], labels[:size], pixels[size:], labels[size:], names, mean, std)


def build_teacher(trial: Trial, images: ArrayDataset) -> TeacherParts:
    """Returns an untrained teacher with the batch statistics of these images, and the transform of its images."""
    assert trial.teacher is not None
    torch.manual_seed(0)
    network, view = build_untrained_teacher(trial.teacher, images, trial.channels_last)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # averages all batches
    with torch.no_grad():
        network.train()
        network(view(images.train_images[:64] / 128.0 - 1))
    return network.eval(), view


def build_member(trial: Trial, images: ArrayDataset, teacher: nn.Module | None) -> StudentModule:
    """Returns a student with its method, in training mode. An error of the method ends the benchmark."""
    member = build_student(trial, images, teacher, DiscardingWriter())
    member.begin_epoch(EPOCH)
    return member.train()


def build_cohort(trials: Sequence[Trial], images: ArrayDataset) -> CohortModule:
    """Returns a cohort with a teacher of its own."""
    network, view = build_teacher(trials[0], images)
    return CohortModule([build_member(trial, images, network) for trial in trials], network, view)


def kd_at_temperatures(trial: Trial, students: int) -> list[Trial]:
    """Returns trials of KD that differ in the temperature only."""
    trials = []
    for number in range(students):
        hyperparameters = trial.method.hyperparameters | {"temperature": float(number + 1)}
        method = trial.method.model_copy(update={"hyperparameters": hyperparameters})
        trials.append(trial.model_copy(update={"method": method}))
    return trials


def logit_cache(folder: Path, trial: Trial, images: ArrayDataset) -> OpenLogitCache:
    """Returns a function that opens an empty cache for the logits of the trial's teacher."""
    train, _ = loaders(trial, images, CPU)
    assert isinstance(train, InMemoryLoader)
    rows = train.view_count * len(images.train_labels)
    path = folder / "cached.logits"
    return lambda compiled: LogitCache(path, {}, rows, images.num_classes, trial.batch_size, parts=not compiled)


def full_batches(trial: Trial, images: ArrayDataset) -> Iterator[Batch]:
    """Yields the loader's batches of full size, epoch after epoch."""
    train, _ = loaders(trial, images, CPU)
    for epoch in count(EPOCH):
        train.set_epoch(epoch)
        yield from (batch for batch in train if len(batch.images) == trial.batch_size)
