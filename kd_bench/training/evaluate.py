"""Computes the accuracy of a network on the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_bench.models.input_transform import InputTransform
from kd_bench.training.loaders import Images, evaluation_loader


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test set, in percent."""

    top1: float
    top5: float
    classes: tuple[float, ...]
    """Top-1 accuracy on the images of each class; NaN for a class without test images."""


@torch.no_grad()
def evaluate_accuracy(
    network: nn.Module,
    view: InputTransform,
    images: Images,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Evaluates a network on the test set.

    Args:
        network: The network, which is moved to the device and set to evaluation mode.
        view: Its input transform.
        images: The data set.
        device: Device to evaluate on.
        progress: Called after each batch with the number of batches done and their total.
    """
    network, view = network.to(device).eval(), view.to(device)
    loader = evaluation_loader(images, device)
    top1_hits: list[Tensor] = []
    labels: list[Tensor] = []
    top5_hits = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for batch in loader:
            labels.append(batch.labels)
            logits = network(view(batch.images))
            hits = logits.topk(min(5, logits.shape[-1])).indices == batch.labels[:, None]
            top1_hits.append(hits[:, 0])
            top5_hits += hits.sum()
            if progress:
                progress(batch.step + 1, len(loader))
    finally:
        loader.close()
    label, hit = torch.cat(labels).cpu(), torch.cat(top1_hits).cpu()  # without images that cannot be decoded
    class_sizes = torch.bincount(label, minlength=images.num_classes)
    class_hits = torch.bincount(label[hit], minlength=images.num_classes)
    return Accuracy(
        top1=100 * float(hit.sum()) / len(label),
        top5=100 * float(top5_hits) / len(label),
        classes=tuple((100 * class_hits.double() / class_sizes).tolist()),
    )
