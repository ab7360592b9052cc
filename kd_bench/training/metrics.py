"""Sums of losses and hits over an epoch, from which its metrics are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_bench.utils.distributed import all_reduce_sum


class MetricSums:
    """Sums over the batches of an epoch. The sums stay on the device and are read once.

    Args:
        by_class: Whether to count the hits of each class, too.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self, by_class: bool = False) -> None:
        self._by_class = by_class
        self._class_counts: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self.images = 0

    def update(self, means: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            means: Scalars that are means over the batch, by name.
            logits: (B, K).
            labels: (B,) int64 or (B, K) float.
        """
        images = len(logits)
        target = labels if labels.ndim == 1 else labels.argmax(-1)
        hits = logits.topk(min(5, logits.shape[-1])).indices == target[:, None]
        values = {name: value.detach() * images for name, value in means.items()}
        values |= {"top1": hits[:, 0].sum(), "top5": hits.sum()}
        if self._by_class:
            if self._class_counts is None:
                self._class_counts = torch.zeros(2, logits.shape[-1], dtype=torch.int64, device=logits.device)
            self._class_counts.index_add_(1, target, torch.stack([hits[:, 0].long(), torch.ones_like(target)]))
        for name, value in values.items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self.images += images

    def state(self) -> dict[str, Any]:
        """Returns the sums so far, on the CPU."""
        return {"images": self.images, "sums": {name: value.cpu() for name, value in self._sums.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        self.images = state["images"]
        self._sums = dict(state["sums"])

    def compute_by_class(self) -> list[float | None]:
        """Returns the top-1 accuracy of each class in percent, over all processes, and resets its counts.

        A class without images has None. The list is empty if there was no batch.
        """
        if self._class_counts is None:
            return []
        hits, images = all_reduce_sum(self._class_counts).tolist()
        self._class_counts = None
        return [100 * hit / count if count else None for hit, count in zip(hits, images, strict=True)]

    def compute(self) -> dict[str, float]:
        """Returns the means over all images of all processes, ``top1`` and ``top5`` in percent, and resets the sums."""
        # All values in one tensor: a GPU is synchronised once, and so are the processes.
        values = [torch.as_tensor(float(self.images)), *self._sums.values()]
        device = values[-1].device
        total = all_reduce_sum(torch.stack([value.to(device, torch.float64) for value in values])).tolist()
        means = {name: value / total[0] for name, value in zip(self._sums, total[1:], strict=True)}
        means |= {name: 100 * means[name] for name in ("top1", "top5")}
        self._sums, self.images = {}, 0
        return means
