"""Matrix products on a GPU that stand for convolutions, and have their precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def conv_product(one: Tensor, other: Tensor) -> Tensor:
    """Multiplies matrices in the precision of the device's convolutions: float32 in TF32 if convolutions are, autocast.

    Torch computes float32 convolutions in TF32 by default, but not matrix products, which would be slower than the
    convolutions for which they stand.

    Args:
        one: (N, O, C).
        other: (N, C, P).

    Returns:
        (N, O, P).
    """
    device = one.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        one, other = one.to(dtype), other.to(dtype)
    product: Tensor = _product(one, other)
    return product


# An operator of its own, because torch.compile cannot set the precision of single products.
@torch.library.custom_op("kd_bench::conv_product", mutates_args=())
def _product(one: Tensor, other: Tensor) -> Tensor:
    with _conv_precision():
        return torch.bmm(one, other)


@_product.register_fake
def _(one: Tensor, other: Tensor) -> Tensor:
    return one.new_empty(one.shape[0], one.shape[1], other.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    one, other = ctx.saved_tensors
    needs_one, needs_other = ctx.needs_input_grad
    of_one = _product(gradient, other.mT) if needs_one else None
    return of_one, _product(one.mT, gradient) if needs_other else None


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
