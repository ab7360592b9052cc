"""The pairs of Table 6 with random weights and random images, and the parts of their steps by the CPU's clock.

Nothing is read and nothing is downloaded: what a step costs does not depend on what the weights have learnt. Teachers
have the batch statistics of a few batches, so that what they put out is neither tiny nor huge.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.estimate.step_cost import DiscardingWriter, untrained
from kd_bench.models.input_transform import InputTransform
from kd_bench.plan import plan
from kd_bench.training.cohort import CohortModule, DistillationCohort, SupervisedCohort
from kd_bench.training.fit import build_student, loaders
from kd_bench.training.logit_cache import LogitCache
from kd_bench.training.student import MicroBatch, StudentModule
from kd_bench.training.teacher import OpenLogitCache
from kd_bench.types import Batch

#: The student alone, the rows of Table 6, and DIST, which the released code has beside them.
ALONE = "none"
METHODS = ("fitnet", "rkd", "crd", "ofd", "reviewkd", "dkd", "kd", "ikl_kd")
LOGIT_METHODS = ("kd", "dkd", "ikl_kd", "dist")

#: Parts of a step. "rest" is what is noted of it: sums for the log, whether the loss is finite.
PARTS = ("data", "teacher", "forward", "loss", "backward", "optimiser", "rest")

#: Images of a training set of CIFAR-100's size; CRD has banks with a row for each.
IMAGES = 50_000
#: From 0. An epoch in which all warm-ups are over, so that no loss is multiplied by 0.
EPOCH = 20

_SHORT = {
    "cifar_resnet32x4": "ResNet32x4",
    "cifar_wrn_40_2": "WRN-40-2",
    "cifar_vgg13": "VGG13",
    "cifar_resnet50": "ResNet50",
    "cifar_shufflenet_v1": "ShuffleNet-V1",
    "cifar_shufflenet_v2": "ShuffleNet-V2",
    "cifar_mobilenet_v2": "MobileNet-V2",
}


def planned(quick: bool = False) -> dict[str, dict[str, Trial]]:
    """Trials by pair and method: those of Table 6, or of two tiny networks."""
    overrides = ["methods.dist={}"]
    if quick:
        recipe = {
            "name": "quick",
            "extends": "cifar100/pairs_base.yaml",
            "batch_size": 8,
            "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
            "methods": {"crd": {"negatives": 50, "feature_dim": 16}},
        }
        found = plan(read_recipe(recipe, overrides, trials=1), "quick")
    else:
        found = plan(read_recipe("cifar100/table6", overrides, trials=1), "cifar100/table6")
    pairs: dict[str, dict[str, Trial]] = {}
    for one in found:
        pairs.setdefault(title(one), {})[one.label] = one.trial
    return pairs


def title(one: PlannedTrial) -> str:
    """ResNet32x4 -> ShuffleNet-V1."""
    return f"{_SHORT.get(one.teacher, one.teacher)} -> {_SHORT.get(one.student, one.student)}"


def images(size: int = IMAGES, test: int = 256) -> ArrayDataset:
    """Noise in the shape of CIFAR-100."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size + test, 3, 32, 32), dtype=torch.uint8, generator=draws)
    labels = torch.arange(size + test) % 100
    names = tuple(map(str, range(100)))
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return ArrayDataset(pixels[:size], labels[:size], pixels[size:], labels[size:], names, mean, std)


def teacher(trial: Trial, data: ArrayDataset) -> tuple[nn.Module, InputTransform]:
    """A teacher that was never trained, with statistics of these images."""
    assert trial.teacher is not None
    torch.manual_seed(0)
    network, view = untrained(trial.teacher, data, trial.channels_last)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean of all that it sees
    with torch.no_grad():
        network.train()
        network(view(data.train_images[:64] / 128.0 - 1))
        network.eval()
    return network, view


def member(trial: Trial, data: ArrayDataset, taught_by: nn.Module | None) -> StudentModule:
    """A student and its method; an error of the method ends the benchmark."""
    found: StudentModule = build_student(trial, data, taught_by, DiscardingWriter())
    found.begin_epoch(EPOCH)
    return found.train()


def cohort(
    members: Sequence[StudentModule],
    network: nn.Module | None,
    view: InputTransform | None,
    remember: OpenLogitCache | None = None,
) -> CohortModule:
    """Members and their teacher, ready for ``step``."""
    if network is None:
        return SupervisedCohort(members)
    return DistillationCohort(members, network, view, remember=remember)


def store(folder: Path, trial: Trial, data: ArrayDataset) -> OpenLogitCache:
    """Opens an empty store for the logits of the trial's teacher."""
    train, _ = loaders(trial, data, torch.device("cpu"))
    assert isinstance(train, InMemoryLoader)
    rows = train.views * len(data.train_labels)
    return lambda compiled: LogitCache(
        folder / "known.logits", {}, rows, data.num_classes, trial.batch_size, parts=not compiled
    )


def batches(trial: Trial, data: ArrayDataset) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch, without smaller ones."""
    train, _ = loaders(trial, data, torch.device("cpu"))
    for epoch in count(EPOCH):
        train.set_epoch(epoch)
        yield from (batch for batch in train if len(batch.images) == trial.batch_size)


class Laps:
    """CPU seconds of the parts of a step, by member and part; what members share is nobody's, ""."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.owner = ""
        self._last = 0.0

    def start(self) -> None:
        self.seconds = defaultdict(float)
        self.owner = ""
        self._last = time.process_time()

    def lap(self, part: str) -> None:
        """What has passed since the last lap was this part."""
        now = time.process_time()
        self.seconds[self.owner, part] += now - self._last
        self._last = now

    def watch(self, member: StudentModule) -> None:
        """Laps where the student's forward pass ends, and before and after the optimiser."""
        member.method.register_forward_pre_hook(lambda *_: self.lap("forward"))
        member.optimizer.register_step_pre_hook(lambda *_: self.lap("rest"))
        member.optimizer.register_step_post_hook(lambda *_: self.lap("optimiser"))

    def backward(self, loss: Tensor) -> None:
        self.lap("loss")
        loss.backward()
        self.lap("backward")


@dataclass(frozen=True)
class Step:
    """CPU seconds of one step, by member and part."""

    seconds: Mapping[tuple[str, str], float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def of(self, *parts: str, owner: str | None = None) -> float:
        """Of these parts, of one member or of all."""
        return sum(
            took for (who, part), took in self.seconds.items() if part in parts and (owner is None or who == owner)
        )


def step(cohort: CohortModule, stream: Iterator[Batch], laps: Laps) -> Step:
    """One step of a cohort whose members ``laps`` watches: what ``Cohort.training_step`` does, without Lightning."""
    laps.start()
    batch = next(stream)
    laps.lap("data")
    taught = cohort.teach(batch)
    laps.lap("teacher")
    for one in cohort.members:
        laps.owner = one.trial.method.name
        one.step(taught.get(one.method.teacher_batch_norm), MicroBatch(batch), laps.backward)
        laps.lap("rest")
    return Step(dict(laps.seconds))
