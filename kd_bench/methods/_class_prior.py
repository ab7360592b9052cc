"""Class-wise weights of IKL: the mean probabilities of each class over the previous epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_bench.methods.base import Method, hard_labels
from kd_bench.types import Batch
from kd_bench.utils.distributed import all_reduce_sum


class ClassPrior(Method):
    """Base of the methods that have class-wise weights.

    The weights start uniform, 1 / K. At the end of each epoch they become the mean probabilities of that epoch's images
    of the class, over all processes; a class without images keeps its row. The class of a mixed label is the one with
    the largest share. Only a method that calls ``init_prior`` has the buffers.
    """

    prior: Tensor
    """(K, K), row y the weights for class y."""
    sums: Tensor
    """(K, K), row y the sum of the probabilities of the current epoch's images of class y."""
    counts: Tensor
    """(K,) int64, the number of these images."""

    def init_prior(self) -> None:
        """Registers the buffers, with uniform weights."""
        classes = self.pair.num_classes
        self.register_buffer("prior", torch.full((classes, classes), 1.0 / classes))
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def accumulate(self, probabilities: Tensor, batch: Batch) -> None:
        """Adds the images' probabilities, (B, K), to the sums of the epoch; does nothing in evaluation mode."""
        if self.training:
            labels = hard_labels(batch)
            _add_rows(self.sums, labels, probabilities)
            _add_rows(self.counts, labels, torch.ones_like(labels))

    def prior_rows(self, batch: Batch) -> Tensor:
        """Returns the weights for the class of each image, (B, K)."""
        return self.prior[hard_labels(batch)]

    @torch.no_grad()
    def on_epoch_end(self) -> None:
        """Rebuilds the weights from the sums of the epoch."""
        if "prior" in self._buffers:
            sums, counts = all_reduce_sum(self.sums), all_reduce_sum(self.counts)[:, None]
            self.prior.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self.prior))
            self.sums.zero_()
            self.counts.zero_()


def _add_rows(sums: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds ``values[i]`` to ``sums[rows[i]]``, always in the same order.

    On a CPU ``index_add_`` adds the rows one after another. On a GPU its order varies, so ``index_put_`` is used, which
    sorts the rows first, as torch's deterministic mode does.
    """
    values = values.to(sums.dtype)
    if sums.device.type == "cpu":
        sums.index_add_(0, rows, values)
    else:
        sums.index_put_((rows,), values, accumulate=True)
