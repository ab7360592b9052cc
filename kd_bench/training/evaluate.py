"""Computes the logits and the accuracy of a network on the test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_bench.models.batch_norm_folding import fold
from kd_bench.training.loaders import Images, evaluation_loader
from kd_bench.training.metrics import MetricSums


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test set, in percent."""

    top1: float
    top5: float
    classes: tuple[float, ...]
    """Top-1 accuracy on the images of each class; NaN for a class without test images."""


#: Called after each batch with the number of batches done and their total.
Progress = Callable[[int, int], None]


def evaluate_accuracy(
    network: nn.Module,
    view: nn.Module,
    images: Images,
    device: torch.device,
    progress: Progress | None = None,
    folded: bool = False,
    workers: int = 0,
) -> Accuracy:
    """Evaluates a network on the test set. The arguments are those of ``logits_by_batch``."""
    sums = MetricSums(by_class=True)
    for logits, labels in logits_by_batch(network, view, images, device, progress, folded, workers):
        sums.update({}, logits, labels)
    hits = sums.state()["sums"]
    top1, top5 = (100 * float(hits[name]) / sums.images for name in ("top1", "top5"))
    classes = tuple(math.nan if value is None else value for value in sums.compute_by_class())
    return Accuracy(top1, top5, classes)


@torch.no_grad()
def logits_by_batch(
    network: nn.Module,
    view: nn.Module,
    images: Images,
    device: torch.device,
    progress: Progress | None = None,
    folded: bool = False,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits, (B, K), and labels, (B,) int64, of the test set's batches, in its order.

    Args:
        network, view: The network, which is moved to the device and set to evaluation mode, and its input transform.
        images: The data set.
        device: Device to evaluate on.
        progress: Called after each batch.
        folded: Whether to fold the batch norms into the convolutions and to have the channels last, which is faster and
            changes the last bits of the logits (see ``kd_bench.models.batch_norm_folding``).
        workers: Processes that decode images, for data sets that are not held in memory.
    """
    network, view = network.to(device).eval(), view.to(device)
    original = network
    loader = evaluation_loader(images, device, workers)
    try:
        for batch in loader:
            inputs = view(batch.images)
            if folded and batch.step == 0:
                network = fold(original, tuple(inputs.shape[1:]))
                if network is not original:
                    network = network.to(memory_format=torch.channels_last)
            if network is not original:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            yield network(inputs), batch.labels
            if progress:
                progress(batch.step + 1, len(loader))
    finally:
        loader.close()
