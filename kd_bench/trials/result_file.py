"""The content of ``result.json`` and ``environment.json``: keys, types and ranges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import StringConstraints

from kd_bench.config.base import KeptContent, Sha256
from kd_bench.config.numbers import NonNegative
from kd_bench.trials.confusion import LINE

Percentage = Annotated[float, Interval(ge=0, le=100)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
#: Fits the 64-bit integers of a data frame.
Count = Annotated[int, Interval(ge=0, le=2**62)]
ConfusionLine = Annotated[str, StringConstraints(pattern=LINE)]


class Images(KeptContent):
    """What images a result is from, see ``kd_bench.data.image_digest.ImageRecord``."""

    digest: Digest
    order: Digest
    kind: Annotated[str, StringConstraints(max_length=60)]


class Energy(KeptContent):
    """The energy of the training epochs, as if the trial were trained alone.

    Attributes:
        joules: By kind of counter: ``GPU`` and ``CPU package``, of those that measured every epoch.
        device: The device, or the devices if the training went on on another one.
    """

    joules: dict[str, NonNegative]
    device: str


class _Result(KeptContent):
    """What finished and failed trials have in common. Values that were not measured are None or absent."""

    best_epoch: Count | None = None
    top5_last: Percentage | None = None
    val_top1_last: Percentage | None = None
    val_top1_best: Percentage | None = None
    val_best_epoch: Count | None = None
    top1_val_best: Percentage | None = None
    class_top1_last: list[Percentage | None] | None = None
    class_names: list[str] | None = None
    confusion_last: list[ConfusionLine] | None = None
    teacher_top1: Percentage | None = None
    evaluated: str | None = None
    seconds: NonNegative | None = None
    seconds_per_epoch: NonNegative | None = None
    images_per_second: NonNegative | None = None
    parameters: Count | None = None
    method_parameters: Count | None = None
    kept_parameters: Count | None = None
    cohort: Count | None = None
    peak_memory_bytes: Count | None = None
    corrupt_images: Count | None = None
    corrupt_files: list[str] | None = None
    weights_file: str | None = None
    images: Images | None = None
    energy: Energy | None = None
    finished: str | None = None


class DoneResult(_Result):
    """The result of a finished trial. Accuracies are top-1 in percent."""

    status: Literal["done"]
    reason: None = None
    top1_last: Percentage
    top1_best: Percentage
    epochs: Count
    weights_sha256: Sha256


class FailedResult(_Result):
    """The result of a trial whose loss diverged."""

    status: Literal["failed"]
    reason: str | None = None
    top1_last: Percentage | None = None
    top1_best: Percentage | None = None
    epochs: Count | None = None


class EnvironmentContent(KeptContent):
    """The part of an environment that kd-bench reads again."""

    started: str | None = None
    command: str | None = None
    device_name: str | None = None
    packages: dict[str, str | None] | None = None
    threads: Count | None = None
    images: Images | None = None
    earlier: list[dict[str, Any]] | None = None
