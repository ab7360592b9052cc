"""Out of distribution: whether a network's scores tell the test images from images of other sets.

Scores are the maximum softmax probability (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
Out-of-Distribution Examples in Neural Networks", 2017) and the energy score (Liu et al., "Energy-based
Out-of-distribution Detection", 2020) at temperature 1. They are higher for images that look like the trial's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.file_dataset import FileDataset
from kd_bench.data.other_images import OtherImages
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.evaluation.target_network import DeployedNetwork
from kd_bench.trials.evaluation_file import OutOfDistribution
from kd_bench.trials.integrity import TOLERANCE
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.evaluation.evaluate_network import NetworkEvaluator, ReportProgress

#: Share of the trial's own images whose score is above the threshold of the false positive rate.
_TRUE_POSITIVES = 0.95


class Separation(NamedTuple):
    """How far a score separates two sets, in percent.

    Attributes:
        auroc: Area under the ROC curve: the probability that an own image has the higher score, a tie counting half.
        fpr95: Share of the other images whose score reaches the highest threshold that at least 95 % of the own images
            reach: the false positive rate at 95 % true positive rate, with the own images as positives.
    """

    auroc: float
    fpr95: float


def maximum_softmax(logits: Tensor) -> Tensor:
    """Returns the largest probability of each image, (N,) float64, for logits, (N, K)."""
    return logits.double().softmax(1).amax(1)


def energy_score(logits: Tensor) -> Tensor:
    """Returns the negative energy of each image at temperature 1, log(sum(exp(logits))): (N,) float64 for (N, K)."""
    return logits.double().logsumexp(1)


def separate(own: Tensor, other: Tensor) -> Separation:
    """Returns how far scores separate the own images, the positives, from other ones.

    Args:
        own: (N,) scores of the own images.
        other: (M,) scores of the other images.
    """
    import numpy as np
    from sklearn.metrics import auc, roc_curve

    scores = torch.cat([own, other]).numpy()
    labels = np.repeat([1, 0], [len(own), len(other)])
    false_positives, true_positives, _ = roc_curve(labels, scores, drop_intermediate=False)
    first = int(np.argmax(true_positives >= _TRUE_POSITIVES))
    area = min(max(float(auc(false_positives, true_positives)), 0.0), 1.0)  # rounding may leave the range
    return Separation(100 * area, 100 * float(false_positives[first]))


def evaluate_others(
    evaluator: NetworkEvaluator,
    target: EvaluationTarget,
    network: Callable[[], DeployedNetwork],
    own_logits: Callable[[], Tensor],
    known: Sequence[OutOfDistribution],
    report_progress: ReportProgress | None = None,
) -> Iterator[list[OutOfDistribution] | str]:
    """Yields what is known after each other set that was unknown, and why sets that were asked for are left out.

    Args:
        evaluator: Knows the other sets and computes logits.
        target: The network's trial or file.
        network: Returns the network.
        own_logits: Returns its logits on the test images, (N, K).
        known: What is known. What is of a set of the same name with other images is replaced.
        report_progress: Called after each batch.

    Raises:
        UserError: If a folder has no images or a damaged one, or if the folders have the same name.
        RunFailed: If logits are not finite.
    """
    values = list(known)
    for other in evaluator.images.others(target.trained, evaluator.others):
        if isinstance(other, str):
            yield f"{target.name}: {other}"
        elif not any((item.name, item.digest) == (other.name, other.digest) for item in values):
            value = _measure(evaluator, target, network(), own_logits(), other, report_progress)
            values = [*(item for item in values if item.name != other.name), value]
            yield list(values)


def evaluate_again(
    evaluator: NetworkEvaluator,
    target: EvaluationTarget,
    network: Callable[[], DeployedNetwork],
    own_logits: Callable[[], Tensor],
    known: Iterable[OutOfDistribution],
) -> list[OutOfDistribution]:
    """Returns what is known, computed anew. Sets that are gone, and folders with other images, are left out."""
    again = []
    for item in known:
        if item.folder is not None and not Path(item.folder).is_dir():
            continue
        try:
            (other,) = evaluator.images.others(target.trained, [item.folder or item.name])
        except UserError:  # it has no images any more
            continue
        if isinstance(other, OtherImages) and (item.folder is None or other.digest == item.digest):
            again.append(_measure(evaluator, target, network(), own_logits(), other, None))
    return again


def _measure(
    evaluator: NetworkEvaluator,
    target: EvaluationTarget,
    deployed: DeployedNetwork,
    own: Tensor,
    other: OtherImages,
    report_progress: ReportProgress | None,
) -> OutOfDistribution:
    task, images, parts = f"{target.name}, {other.name}", deployed.images, []
    for part in other.parts(_image_size(images)):
        labels = torch.zeros(len(part), dtype=torch.int64)  # they are unknown and are not looked at
        shown = ArrayDataset(part, labels, part, labels, images.class_names, images.mean, images.std)
        parts.append(
            evaluator.logits(deployed.network, deployed.view, shown, deployed.folded, task, report_progress).logits
        )
    logits = torch.cat(parts)
    softmax, energy = (separate(score(own), score(logits)) for score in (maximum_softmax, energy_score))
    return OutOfDistribution(
        name=other.name,
        digest=other.digest,
        folder=None if other.folder is None else str(other.folder),
        images=other.count,
        test_images=len(own),
        auroc=softmax.auroc,
        fpr95=softmax.fpr95,
        auroc_energy=energy.auroc,
        fpr95_energy=energy.fpr95,
        machine=evaluator.machine(),
    )


def _image_size(images: ArrayDataset | FileDataset) -> int:
    """Returns height and width of the trial's own test images."""
    if isinstance(images, FileDataset):
        return images.pipeline.test_size or images.pipeline.size
    return images.image_shape[-1]


def differences(
    old: Iterable[OutOfDistribution], new: Iterable[OutOfDistribution]
) -> Iterator[tuple[str, object, object]]:
    """Yields key, recorded and present value of what differs by more than the rounding of another machine may."""
    now = {item.name: item for item in new}
    for before in old:
        after = now.get(before.name)
        if after is None:
            continue
        if before.digest != after.digest:
            yield f"ood.{before.name}.digest", before.digest, after.digest
            continue
        allowed = max(TOLERANCE, 100 / before.images, 100 / before.test_images)
        for key in ("auroc", "fpr95", "auroc_energy", "fpr95_energy"):
            value, present = getattr(before, key), getattr(after, key)
            if abs(value - present) > allowed:
                yield f"ood.{before.name}.{key}", value, present
