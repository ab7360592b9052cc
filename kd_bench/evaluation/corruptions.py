"""Robustness to corruptions: the accuracy on corrupted copies of the test set, 15 corruptions at 5 severities.

The protocol is that of CIFAR-C and ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", 2019): pixels are corrupted before they are normalised, and before they are
resized for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.corrupted import CorruptedImages
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.evaluation.target_network import DeployedNetwork
from kd_bench.trials.environment import utc_timestamp
from kd_bench.trials.evaluation_file import Corruptions
from kd_bench.trials.integrity import TOLERANCE

if TYPE_CHECKING:
    from kd_bench.evaluation.evaluate_network import NetworkEvaluator, ReportProgress


def evaluate_corruptions(
    evaluator: NetworkEvaluator,
    target: EvaluationTarget,
    network: Callable[[], DeployedNetwork],
    known: Sequence[Corruptions],
    again: bool = False,
    report_progress: ReportProgress | None = None,
) -> Iterator[list[Corruptions] | str]:
    """Yields what is known after each copy on which the accuracy was unknown, or why there are no copies.

    Args:
        evaluator: Has the images and computes logits.
        target: The network's trial or file.
        network: Returns the network.
        known: What is known. What is on copies of the same origin is continued, unless these were made with other
            versions of libraries and are not all there.
        again: Whether to compute what is known and finished anew, and nothing else.
        report_progress: Called while copies are made and evaluated.

    Raises:
        UserError: If a file is damaged, or if there is no room for copies.
        RunFailed: If the package that makes copies fails, or logits are not finite.
    """
    source = evaluator.images.corrupted(target.trained)
    if isinstance(source, str):
        yield f"{target.name}: corruptions are left out, because {source}"
        return
    earlier = next((value for value in known if _origin(value) == _origin(source)), None)
    others = [value for value in known if value is not earlier]
    if (earlier is not None and earlier.mean is not None) != again:
        return
    if again or (earlier is not None and earlier.libraries != source.libraries):
        earlier = None
    for value in _measure(evaluator, network(), source, earlier, target.name, report_progress):
        yield [*others, value]


def _measure(
    evaluator: NetworkEvaluator,
    deployed: DeployedNetwork,
    source: CorruptedImages,
    earlier: Corruptions | None,
    name: str,
    report_progress: ReportProgress | None,
) -> Iterator[Corruptions]:
    """Yields the accuracies after each copy that ``earlier`` does not have."""
    assert isinstance(deployed.images, ArrayDataset)
    machine = evaluator.machine()
    accuracy = {key: list(values) for key, values in earlier.accuracy.items()} if earlier else {}
    digests = {key: list(values) for key, values in earlier.digests.items()} if earlier else {}
    missing = [(key, severity) for key in CORRUPTIONS for severity in SEVERITIES[len(accuracy.get(key, ())) :]]
    for corruption, severity in missing:
        task = f"{name}, {corruption.replace('_', ' ')}"
        making = _progress_of(f"{task}, making images", severity, report_progress)
        copy = source.copy(corruption, severity, partial(making, ""))
        images = replace(deployed.images, test_images=copy.images, test_labels=source.labels, test_digests=None)
        progress = _progress_of(task, severity, report_progress)
        logits, labels = evaluator.logits(deployed.network, deployed.view, images, deployed.folded, task, progress)
        hits = int((logits.argmax(1) == labels).sum())
        accuracy.setdefault(corruption, []).append(100 * hits / len(labels))
        digests.setdefault(corruption, []).append(copy.digest)
        yield Corruptions(
            source=source.source,
            origin=source.origin,
            libraries=dict(source.libraries),
            images=len(labels),
            accuracy={key: list(values) for key, values in accuracy.items()},
            digests={key: list(values) for key, values in digests.items()},
            mean=Corruptions.mean_of(accuracy),
            machine=machine.model_copy(update={"finished": utc_timestamp()}),
        )


def differences(old: Iterable[Corruptions], new: Iterable[Corruptions]) -> Iterator[tuple[str, object, object]]:
    """Yields key, recorded and present value of accuracies that differ, and of published copies that are others.

    Made copies may differ in the last bits on another processor, so that their digests may, too.
    """
    now = {_origin(value): value for value in new}
    for before in old:
        after = now.get(_origin(before))
        if after is None:
            continue
        for corruption, values in before.accuracy.items():
            for index, accuracy in enumerate(values):
                key, present = f"corruptions.{corruption}.{SEVERITIES[index]}", after.accuracy[corruption][index]
                digest, is_digest = before.digests[corruption][index], after.digests[corruption][index]
                if before.source == "published" and digest != is_digest:
                    yield f"{key}.digest", digest, is_digest
                elif abs(accuracy - present) > TOLERANCE:
                    yield key, accuracy, present


def _origin(of: Corruptions | CorruptedImages) -> tuple[str, str]:
    return of.source, of.origin


def _progress_of(task: str, severity: int, report_progress: ReportProgress | None) -> ReportProgress:
    """Returns a function that counts the parts of a task at one severity among those at all severities."""

    def progress(_: str, part: int, parts: int) -> None:
        if report_progress is not None:
            report_progress(task, (severity - 1) * parts + part, len(SEVERITIES) * parts)

    return progress
