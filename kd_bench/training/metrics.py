"""Sums of losses and hits over an epoch, from which its metrics are computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kd_bench.losses import at_least_float32
from kd_bench.utils.distributed import all_gather_object, all_reduce_sum

#: Largest number of classes with a confusion matrix, which then has 4 MB on the device.
_MOST_CLASSES = 1000


class MetricSums:
    """Sums over the batches of an epoch. The sums stay on the device and are read once.

    The tensors of the sums keep their place in memory over all epochs, because recorded steps write to them.

    Args:
        by_class: Whether to count the hits of each class, too, and which classes are predicted for it.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self, by_class: bool = False) -> None:
        self._by_class = by_class
        self._class_counts: Tensor | None = None
        self._confusion: Tensor | None = None  # (K * K,), by true and predicted class
        self._sums: dict[str, Tensor] = {}
        self._names: set[str] = set()  # of the sums that have values in this epoch
        self.images = 0

    def update(self, means: dict[str, Tensor], logits: Tensor | None, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            means: Scalars that are means over the batch, by name.
            logits: (B, K); None for means alone.
            labels: (B,) int64 or (B, K) float.
        """
        images = len(labels)
        values = {name: at_least_float32(value.detach()) * images for name, value in means.items()}
        if logits is not None:
            target = labels if labels.ndim == 1 else labels.argmax(-1)
            ranked = logits.topk(min(5, logits.shape[-1])).indices
            hits = ranked == target[:, None]
            values |= {"top1": hits[:, 0].sum(), "top5": hits.sum()}
            if self._by_class:
                self._count_classes(target, ranked[:, 0], logits.shape[-1])
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
            elif self._sums[name].device != value.device:  # after ``restore``
                self._sums[name] = self._sums[name].to(value.device)
            self._sums[name] += value
        self.count(images, values)

    def _count_classes(self, target: Tensor, predicted: Tensor, classes: int) -> None:
        if self._class_counts is None:
            self._class_counts = torch.zeros(2, classes, dtype=torch.int64, device=target.device)
            if classes <= _MOST_CLASSES:
                self._confusion = torch.zeros(classes * classes, dtype=torch.int32, device=target.device)
        self._class_counts.index_add_(1, target, torch.stack([(predicted == target).long(), torch.ones_like(target)]))
        if self._confusion is not None:
            cells = target * classes + predicted
            self._confusion.index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))

    def count(self, images: int, names: Iterable[str]) -> None:
        """Counts images whose values are in the sums with these names already."""
        self.images += images
        self._names.update(names)

    def reset_count(self, images: int, names: Iterable[str]) -> None:
        """Sets the number of images, and the names of the sums that have values."""
        self.images, self._names = images, set(names)

    @property
    def names(self) -> list[str]:
        """Names of the sums that have values in this epoch."""
        return [name for name in self._sums if name in self._names]

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that ``update`` changes."""
        counts = [counts for counts in (self._class_counts, self._confusion) if counts is not None]
        return [*self._sums.values(), *counts]

    def state(self) -> dict[str, Any]:
        """Returns the sums so far, on the CPU."""
        return {"images": self.images, "sums": {name: self._sums[name].cpu().clone() for name in self.names}}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        self.images = state["images"]
        self._sums = dict(state["sums"])
        self._names = set(self._sums)

    def compute_by_class(self) -> list[float | None]:
        """Returns the top-1 accuracy of each class in percent, over all processes, and resets its counts.

        A class without images has None. The list is empty if there was no batch.
        """
        counts = _total_counts(self._class_counts, torch.int64)
        if counts is None:
            return []
        hits, images = counts.tolist()
        if self._class_counts is not None:
            self._class_counts.zero_()
        if not any(images):
            return []
        return [100 * hit / count if count else None for hit, count in zip(hits, images, strict=True)]

    def compute_confusion(self) -> Tensor | None:
        """Returns the confusion matrix over all processes, and resets its counts.

        Returns:
            (K, K) int32 on the CPU, images by true and predicted class; None if there was no batch, or if there are
            more than 1000 classes.
        """
        counts = _total_counts(self._confusion, torch.int32)
        if counts is None:
            return None
        total = counts.clone()
        if self._confusion is not None:
            self._confusion.zero_()
        classes = math.isqrt(len(total))
        return total.view(classes, classes)

    def compute(self) -> dict[str, float]:
        """Returns the means over all images of all processes, ``top1`` and ``top5`` in percent, and resets the sums.

        The dictionary is empty if there was no image.
        """
        # All values in one tensor: a GPU is synchronised once, and so are the processes.
        values = [torch.as_tensor(float(self.images)), *(self._sums[name] for name in self.names)]
        device = values[-1].device
        numbers = torch.stack([value.to(device, torch.float64) for value in values]).tolist()
        # By name, because a process without images has no sums. The name of the number of images is empty.
        processes = all_gather_object(dict(zip(("", *self.names), numbers, strict=True)))
        total = {name: sum(sums.get(name, 0.0) for sums in processes) for sums in processes for name in sums}
        images = total.pop("")
        means = {name: value / images for name, value in total.items()}
        means |= {name: 100 * means[name] for name in ("top1", "top5") if name in means}
        for value in self._sums.values():
            value.zero_()
        self._names.clear()
        self.images = 0
        return means


def _total_counts(counts: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns the sum of counts over all processes, on the CPU; None if no process has any.

    A process may have none because it has no images, and the others wait for it.
    """
    shapes = all_gather_object(None if counts is None else tuple(counts.shape))
    shape = next((shape for shape in shapes if shape is not None), None)
    if shape is None:
        return None
    return all_reduce_sum(torch.zeros(shape, dtype=dtype) if counts is None else counts.cpu())
