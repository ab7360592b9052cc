"""Class-wise weights of IKL: the mean probabilities of each class over the previous epoch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_bench import losses
from kd_bench.losses.precision import matmul
from kd_bench.methods.base import Method, hard_labels
from kd_bench.types import Batch
from kd_bench.utils.distributed import all_reduce_sum


class ClassPrior(Method):
    """Base of the methods that have IKL's weights, which their ``__init__`` chooses with ``init_weights``.

    Class-wise weights start uniform, 1 / K. At the end of each epoch they become the mean probabilities of that epoch's
    images of the class, over all processes; a class without images keeps its row. The class of a mixed label is the one
    with the largest share. Only class-wise weights have the buffers.
    """

    prior: Tensor
    """(K, K), row y the weights for class y."""
    sums: Tensor
    """(K, K), row y the sum of the probabilities of the current epoch's images of class y."""
    counts: Tensor
    """(K,) int64, the number of these images."""

    def init_weights(self, weights: Literal["class", "sample"], tau: float) -> None:
        """Chooses the weights. ``tau`` is their temperature. Class-wise weights are uniform at first."""
        self.weights, self.tau, classes = weights, tau, self.pair.num_classes
        if weights == "class":
            self.register_buffer("prior", torch.full((classes, classes), 1.0 / classes))
            self.register_buffer("sums", torch.zeros(classes, classes))
            self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    def weights_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the weights of each image, (B, K), from the logits of the natural images or of the teacher."""
        if self.weights == "class":
            return self.prior[hard_labels(batch)]
        return losses.class_weights(logits, self.tau)

    @torch.no_grad()
    def accumulate(self, logits: Tensor, batch: Batch) -> None:
        """Adds the images' probabilities to the sums of the epoch, in training mode and with class-wise weights."""
        if self.training and self.weights == "class":
            labels = hard_labels(batch)
            _add_rows(self.sums, labels, losses.class_weights(logits, self.tau))
            _add_rows(self.counts, labels, torch.ones_like(labels))

    @torch.no_grad()
    def on_epoch_end(self) -> None:
        """Rebuilds the weights from the sums of the epoch."""
        if self.weights == "class":
            sums, counts = all_reduce_sum(self.sums), all_reduce_sum(self.counts)[:, None]
            self.prior.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self.prior))
            self.sums.zero_()
            self.counts.zero_()


def _add_rows(sums: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds ``values[i]`` to ``sums[rows[i]]``, always in the same order.

    On a CPU ``index_add_`` adds the rows one after another. On a GPU its order varies, which changes the last bits of
    floating-point sums. ``index_put_``, which sorts the rows first, reads a number from the GPU in some versions of
    torch, so that a step cannot be recorded. A matrix product has neither problem.
    """
    values = values.to(sums.dtype)
    if sums.device.type == "cpu" or not sums.is_floating_point():
        sums.index_add_(0, rows, values)
    else:
        sums.add_(sums_by_product(rows, values, len(sums)))


def sums_by_product(rows: Tensor, values: Tensor, count: int) -> Tensor:
    """Returns the sums, (count, K), of ``values``, (B, K), by their row, ``rows``, (B,), computed as a matrix product.

    The sums have the precision of the values under any autocast.
    """
    one_hot = torch.arange(count, device=rows.device)[:, None] == rows
    return matmul(one_hot.to(values.dtype), values)
