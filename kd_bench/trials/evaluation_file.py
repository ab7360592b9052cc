"""``evaluation.json``: calibration, fidelity, efficiency and robustness of a network, see ``kd_bench.evaluation``.

Each metric says what it is from: the weights and images of the whole file, the images its temperature was fitted on,
the weights of the teacher, the machine.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Interval, MaxLen
from pydantic import StringConstraints, model_validator

from kd_bench.config.base import KeptContent, Sha256
from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES, Source
from kd_bench.config.numbers import NonNegative, Positive
from kd_bench.config.validate import parse_kept
from kd_bench.trials.result_file import Count, Digest, Images, Percentage
from kd_bench.utils.files import write_json
from kd_bench.utils.regular_files import BadFile, read_json_object
from kd_bench.utils.text import count

#: Name of the file in a trial's folder.
EVALUATION = "evaluation.json"

#: The metrics, in the order in which they are computed and shown.
METRICS = ("calibration", "fidelity", "efficiency", "ood", "corruptions")

#: Metrics that take so long that they are computed only if they are asked for by name.
SLOW_METRICS = ("corruptions",)

#: What a temperature was fitted on: images that no network was trained on, or for each half of the test set the other.
FittedOn = Literal["held-out images", "cross-fitted"]

#: Characters of the longest name in the file.
LONGEST_NAME = 200

_Text = Annotated[str, StringConstraints(max_length=LONGEST_NAME)]
_TeacherId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
_PositiveCount = Annotated[int, Interval(ge=1, le=2**62)]
_Brier = Annotated[float, Interval(ge=0, le=2)]


class Machine(KeptContent):
    """Where and with which versions something was computed.

    Attributes:
        version: Version of kd-bench.
        torch: Version of torch.
        device: ``cpu`` or ``cuda``.
        device_name: The processor or the GPU.
        threads: CPU threads of one operation.
        finished: UTC time as ISO 8601.
    """

    version: _Text
    torch: _Text
    device: Literal["cpu", "cuda"]
    device_name: _Text
    threads: _PositiveCount
    finished: _Text

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What must be equal before times are compared: device, its name, threads and torch."""
        return self.device, self.device_name, self.threads, self.torch

    @property
    def title(self) -> str:
        """Name for people: ``NVIDIA H100 (cuda), 1 thread, torch 2.9.0``."""
        return f"{self.device_name} ({self.device}), {count(self.threads, 'thread')}, torch {self.torch}"


class Errors(KeptContent):
    """Errors of predicted probabilities.

    Attributes:
        ece: Expected calibration error in percentage points.
        nll: Mean negative log-likelihood of the labels, in nats.
        brier: Multi-class Brier score, from 0 to 2.
    """

    ece: Percentage
    nll: NonNegative
    brier: _Brier


class Calibration(KeptContent):
    """Calibration on the test set.

    Attributes:
        images: Number of test images.
        plain: Errors of the probabilities as they are.
        fitted_on: What the temperature was fitted on; None without a temperature.
        temperatures: One for held-out images, one a half for cross-fitting, none without.
        scaled: Errors with the temperature; None without.
        machine: Where it was computed.
    """

    images: _PositiveCount
    plain: Errors
    fitted_on: FittedOn | None
    temperatures: Annotated[list[Positive], MaxLen(2)]
    scaled: Errors | None
    machine: Machine

    @model_validator(mode="after")
    def _check(self) -> Self:
        expected = {None: 0, "held-out images": 1, "cross-fitted": 2}[self.fitted_on]
        if len(self.temperatures) != expected or (self.scaled is None) != (self.fitted_on is None):
            raise ValueError(f"temperatures and scaled do not fit fitted_on, which is {self.fitted_on!r}")
        return self


class Fidelity(KeptContent):
    """How far a student predicts what a teacher predicts, on the test set.

    Attributes:
        images: Number of test images.
        teacher: The teacher's network.
        teacher_weights: SHA-256 of the teacher's weights.
        agreement: Images for which both predict the same class, in percent.
        kl: Mean of KL(teacher || student) at temperature 1, in nats.
        teacher_errors: Number of images that the teacher classifies wrongly.
        agreement_on_errors: Of these, those for which the student predicts the same class, in percent; None if the
            teacher makes no errors.
        machine: Where it was computed.
    """

    images: _PositiveCount
    teacher: _Text
    teacher_weights: Sha256
    agreement: Percentage
    kl: NonNegative
    teacher_errors: Count
    agreement_on_errors: Percentage | None
    machine: Machine

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher_errors > self.images or (self.agreement_on_errors is None) != (self.teacher_errors == 0):
            raise ValueError(f"agreement_on_errors does not fit teacher_errors, which is {self.teacher_errors}")
        return self


class Timing(KeptContent):
    """Speed of the deployed network on one machine, in evaluation mode and float32.

    Attributes:
        latency: Median milliseconds of a batch of one image.
        throughput: Images a second in batches of ``batch``, by the median.
        batch: Images of a batch of ``throughput``.
        runs: Number of timed runs of latency and of throughput.
        machine: The machine.
    """

    latency: Positive
    throughput: Positive
    batch: _PositiveCount
    runs: Annotated[list[_PositiveCount], MaxLen(2)]
    machine: Machine


class Efficiency(KeptContent):
    """Size and speed of the deployed network, with the layers of its method that it keeps.

    Attributes:
        input: Shape of an image: channels, height, width.
        parameters: Number of parameters.
        macs: Multiplications with addition of one image, in products and convolutions.
        file_bytes: Size of the file of weights.
        timings: One a machine.
    """

    input: Annotated[list[_PositiveCount], MaxLen(3)]
    parameters: Count
    macs: Count
    file_bytes: Count
    timings: Annotated[list[Timing], MaxLen(100)]


class Corruptions(KeptContent):
    """Accuracy on corrupted copies of the test set, in percent. It is not finished as long as copies are lacking.

    Attributes:
        source: Whether the copies are published or were made.
        origin: The set of published files, or the package that made the copies, with its version.
        libraries: Versions of the libraries that computed the pixels, by name; empty for published copies.
        images: Number of test images.
        accuracy: Accuracy by corruption, at severities 1, 2 and so on.
        digests: Digests of the pixels of the copies in the same order.
        mean: Mean accuracy over all corruptions and severities; None if it is not finished.
        machine: Where it was computed.
    """

    source: Source
    origin: _Text
    libraries: Annotated[dict[_Text, _Text], MaxLen(20)]
    images: _PositiveCount
    accuracy: Annotated[dict[_Text, Annotated[list[Percentage], MaxLen(len(SEVERITIES))]], MaxLen(len(CORRUPTIONS))]
    digests: Annotated[dict[_Text, Annotated[list[Digest], MaxLen(len(SEVERITIES))]], MaxLen(len(CORRUPTIONS))]
    mean: Percentage | None
    machine: Machine

    @model_validator(mode="after")
    def _check(self) -> Self:
        other = next((name for name in self.accuracy if name not in CORRUPTIONS), None)
        if other is not None:
            raise ValueError(f"accuracy has {other!r}, which is no corruption")
        if {name: len(values) for name, values in self.accuracy.items()} != {
            name: len(values) for name, values in self.digests.items()
        }:
            raise ValueError("digests are not of the copies that accuracy is on")
        mean = self.mean_of(self.accuracy)
        if (self.mean is None) != (mean is None) or not math.isclose(self.mean or 0, mean or 0, abs_tol=1e-6):
            raise ValueError(f"mean is {self.mean}, but the mean of the accuracies is {mean}")
        return self

    @staticmethod
    def mean_of(accuracy: Mapping[str, Sequence[float]]) -> float | None:
        """Returns the mean over all corruptions and severities; None if some are lacking."""
        values = [value for name in CORRUPTIONS for value in accuracy.get(name, ())]
        return statistics.fmean(values) if len(values) == len(CORRUPTIONS) * len(SEVERITIES) else None

    @property
    def protocol(self) -> str:
        """Which copies these are, in words."""
        if self.source == "made":
            return f"made by {self.origin} with the strengths of ImageNet-C"
        digests = "".join(digest for name in CORRUPTIONS for digest in self.digests.get(name, ()))
        return f"published {self.origin}, digest {hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()}"


class OutOfDistribution(KeptContent):
    """How far scores of the test images are above those of other images, see ``evaluation.out_of_distribution``.

    Attributes:
        name: The other data set, or the folder's name.
        digest: Digest of its images.
        folder: The folder of the images; None for a data set.
        images, test_images: Number of other images, and of test images.
        auroc, fpr95: Area under the ROC curve, and false positive rate at 95 % true positive rate, of the largest
            probability; in percent.
        auroc_energy, fpr95_energy: The same of the energy score.
        machine: Where it was computed.
    """

    name: _Text
    digest: Digest
    folder: Annotated[str, StringConstraints(max_length=4096)] | None
    images: _PositiveCount
    test_images: _PositiveCount
    auroc: Percentage
    fpr95: Percentage
    auroc_energy: Percentage
    fpr95_energy: Percentage
    machine: Machine


class Evaluation(KeptContent):
    """The content of the file.

    Attributes:
        model: The network.
        weights_sha256: SHA-256 of the file of weights.
        images: What images were evaluated.
        calibration, efficiency: The metrics; None for one that was not computed.
        fidelity: The metric by the teacher's id.
        corruptions: The metric for each origin of corrupted images.
        ood: Out of distribution: the metric for each other set of images.
    """

    kind: Literal["evaluation"] = "evaluation"
    model: Annotated[str, StringConstraints(max_length=1000)]
    weights_sha256: Sha256
    images: Images
    calibration: Calibration | None = None
    fidelity: Annotated[dict[_TeacherId, Fidelity], MaxLen(100)] = {}
    efficiency: Efficiency | None = None
    corruptions: Annotated[list[Corruptions], MaxLen(20)] = []
    ood: Annotated[list[OutOfDistribution], MaxLen(100)] = []

    @property
    def subject(self) -> tuple[Any, ...]:
        """What must be equal for the metrics to be those of the same network: its name, weights and images."""
        return self.model, self.weights_sha256, self.images

    def describe_images(self, number: int) -> str:
        """Returns what a metric of this number of images was measured on, in words."""
        return f"{number} test images, digest {self.images.digest[:16]}"


def read_evaluation_file(path: Path) -> Evaluation | None:
    """Reads the file; returns None if there is none.

    Raises:
        BadFile: If it is no regular file, or its content is not that of an evaluation.
    """
    content = read_json_object(path)
    if content is None:
        return None
    if "kind" not in content:
        raise BadFile("is damaged: it does not say that it is an evaluation")
    return parse_kept(Evaluation, content)


def write_evaluation_file(path: Path, evaluation: Evaluation) -> None:
    """Writes the file atomically, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, evaluation.model_dump(mode="json"))


def evaluation_faults(folder: Path, weights_sha256: str, images: dict[str, Any] | None) -> list[str]:
    """Returns what is wrong with a finished trial's evaluation, a sentence each; nothing if it has none.

    Args:
        folder: The trial's folder.
        weights_sha256: SHA-256 of its weights.
        images: What images its result is from; None if that was not recorded.
    """
    path = folder / EVALUATION
    try:
        evaluation = read_evaluation_file(path)
    except BadFile as error:
        return [f"{path}: {error}"]
    if evaluation is None:
        return []
    fault = other_subject(evaluation, weights_sha256, images)
    return [f"{path}: {fault}"] if fault else []


def other_subject(evaluation: Evaluation, weights_sha256: str, images: dict[str, Any] | None) -> str | None:
    """Returns why an evaluation is not of these weights and images, as a predicate; None if it is."""
    if evaluation.weights_sha256 != weights_sha256:
        return "is of other weights than the trial's; evaluate them with: kd-bench evaluate"
    kinds = images is not None and images["kind"] == evaluation.images.kind
    if images is not None and kinds and images["digest"] != evaluation.images.digest:
        return (
            f"is of other images than the trial's (digest {evaluation.images.digest} instead of {images['digest']}); "
            "evaluate the trial with: kd-bench evaluate"
        )
    return None
