"""Counts the operations that run: their arithmetic, their memory traffic and the memory that they leave allocated."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

#: Precision of a matrix product or a convolution: ``half`` (bfloat16), ``convolution`` (float32, which cuDNN computes
#: in TF32 if the device supports it) or ``single`` (float32 throughout). ``none`` for all other operations.
Arithmetic = Literal["half", "convolution", "single", "none"]

#: Operations that allocate or rename memory without touching it.
_NO_WORK = {
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
                 "_unsafe_view", "lift_fresh", "_reshape_alias")
}  # fmt: skip


def _convolution_backward_flops(
    grad_output: Tensor, images: Tensor, weight: Tensor, *settings: Any, out_val: Any
) -> int:
    """Returns the operations of a convolution's backward pass: those of its forward pass for each gradient.

    torch's own formula ignores the groups in the gradient of the weight, and so counts that ``groups`` times. The
    gradient of the bias is a sum, which is not counted.
    """
    transposed, output_mask = settings[4], settings[7]
    pixels = (images if transposed else grad_output).shape[2:].numel()
    return 2 * sum(output_mask[:2]) * len(images) * pixels * weight.numel()


_aten = torch.ops.aten
#: Formulas that torch lacks (attention on the CPU) or has wrong (convolutions in groups).
_FLOP_FORMULAS: dict[str, Callable[..., int]] = {
    "aten::convolution_backward": _convolution_backward_flops,
    "aten::_scaled_dot_product_flash_attention_for_cpu": flop_registry[_aten._scaled_dot_product_flash_attention],
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


class Operation(NamedTuple):
    """An operation, as far as its time depends on it."""

    flops: int
    """Floating-point operations, two for a multiplication with addition; 0 except for products and convolutions."""
    moved: int
    """Bytes read and written."""
    arithmetic: Arithmetic


class OperationCounts(Counter[Operation]):
    """How often each operation runs."""

    @property
    def flops(self) -> int:
        """Floating-point operations of all matrix products and convolutions."""
        return sum(operation.flops * times for operation, times in self.items())


class OperationCounter(TorchDispatchMode):
    """Context manager that counts the operations inside and the memory that they allocate.

    A tensor without content returns 1 from ``item()`` (a count of steps), or False (a flag of an error).

    Attributes:
        counts: The operations that ran.
        allocated: Bytes that were allocated inside and are still in use.
        peak: The maximum of ``allocated``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = OperationCounts()
        self.allocated = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and (isinstance(args[0], FakeTensor) or args[0].is_meta):
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        formula = _FLOP_FORMULAS.get(name) or flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if name.startswith("prim::"):
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._count_memory(inputs, outputs)
        if not func.is_view and name not in _NO_WORK:
            flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
            moved = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            self.counts[Operation(flops, moved, _arithmetic(name, inputs) if flops else "none")] += 1
        return result

    def _count_memory(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        reused = {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key, num_bytes = storage._cdata, storage.nbytes()
            if key not in reused and key not in self._storages:
                self._storages.add(key)
                self.allocated += num_bytes
                self.peak = max(self.peak, self.allocated)
                weakref.finalize(storage, self._free, key, num_bytes)

    def _free(self, key: int, num_bytes: int) -> None:
        self._storages.discard(key)
        self.allocated -= num_bytes


def _arithmetic(name: str, inputs: Sequence[Tensor]) -> Arithmetic:
    if inputs[0].element_size() < 4:
        return "half"
    return "convolution" if "conv" in name else "single"
