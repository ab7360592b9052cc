"""Matrix products on a GPU that stand for convolutions, and have their precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def conv_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies matrices in the precision of the device's convolutions: float32 in TF32 if convolutions are, autocast.

    Torch computes float32 convolutions in TF32 by default, but not matrix products, which would be slower than the
    convolutions for which they stand.

    Args:
        left: (N, O, C).
        right: (N, C, P).

    Returns:
        (N, O, P).
    """
    device = left.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        left, right = left.to(dtype), right.to(dtype)
    product: Tensor = _product(left, right)
    return product


# An operator of its own, because torch.compile cannot set the precision of single products.
@torch.library.custom_op("kd_bench::conv_product", mutates_args=())
def _product(left: Tensor, right: Tensor) -> Tensor:
    with _conv_precision():
        return torch.bmm(left, right)


@_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], right.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    left, right = ctx.saved_tensors
    needs_left, needs_right = ctx.needs_input_grad
    of_left = _product(gradient, right.mT) if needs_left else None
    return of_left, _product(left.mT, gradient) if needs_right else None


_product.register_autograd(_gradients, setup_context=_save)


@contextmanager
def _conv_precision() -> Iterator[None]:
    """Inside, products of float32 matrices are as precise as convolutions on a GPU."""
    allowed = torch.backends.cudnn.allow_tf32
    if torch.backends.cuda.matmul.allow_tf32 == allowed:
        yield
        return
    # Restoring ``matmul.allow_tf32`` instead would turn a user's "medium", which also allows TF32, into "high".
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
