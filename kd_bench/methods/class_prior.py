"""Class-wise weights of IKL: each class's mean probabilities over the epoch before."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_bench.methods.base import Method, hard_labels
from kd_bench.types import Batch
from kd_bench.utils.distributed import all_reduce_sum


class ClassPrior(Method):
    """Base of the methods that have class-wise weights.

    They begin uniform, 1 / K, and are rebuilt at the end of each epoch from the probabilities of that epoch's images,
    over all processes; a class that was not seen keeps its row. The class of a mixed label is the one with the largest
    share. A method that calls ``start_prior`` has the buffers, and is resumed with them.
    """

    prior: Tensor
    """(K, K), row y the weights for class y."""
    sums: Tensor
    """(K, K), row y the sum of the probabilities of the images of class y in the epoch under way."""
    counts: Tensor
    """(K,) int64, the number of these images."""

    def start_prior(self) -> None:
        """Makes the weights, uniform."""
        classes = self.pair.num_classes
        self.register_buffer("prior", torch.full((classes, classes), 1.0 / classes))
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def count(self, probabilities: Tensor, batch: Batch) -> None:
        """Adds these images' probabilities, (B, K), to those the next epoch's weights are made of; in training only."""
        if self.training:
            labels = hard_labels(batch)
            _add_rows(self.sums, labels, probabilities)
            _add_rows(self.counts, labels, torch.ones_like(labels))

    def of_classes(self, batch: Batch) -> Tensor:
        """(B, K), each image's class's weights."""
        return self.prior[hard_labels(batch)]

    @torch.no_grad()
    def on_epoch_end(self) -> None:
        """Rebuilds the class weights from the epoch that ends."""
        if "prior" in self._buffers:
            sums, counts = all_reduce_sum(self.sums), all_reduce_sum(self.counts)[:, None]
            self.prior.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self.prior))
            self.sums.zero_()
            self.counts.zero_()


def _add_rows(sums: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds ``values[i]`` to ``sums[rows[i]]``, always in the same order.

    On a CPU that is ``index_add_``, which takes the rows one after another. On a GPU ``index_add_`` adds in no fixed
    order, and ``index_put_``, which sorts the rows first, is what torch's deterministic mode puts in its place.
    """
    values = values.to(sums.dtype)
    if sums.device.type == "cpu":
        sums.index_add_(0, rows, values)
    else:
        sums.index_put_((rows,), values, accumulate=True)
