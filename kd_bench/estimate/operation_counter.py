"""Notes the operations that run, with their arithmetic, their memory traffic, and what they leave allocated."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

#: What a product of matrices or a convolution computes in: ``half`` (bfloat16), ``convolution`` (float32, which cuDNN
#: computes in TF32 where the device has it) or ``single`` (float32 throughout); ``none`` for all other operations.
Arithmetic = Literal["half", "convolution", "single", "none"]

_aten = torch.ops.aten
#: Operations that allocate or rename memory and touch none of it.
_IDLE = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
         "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::lift_fresh", "aten::_reshape_alias"}  # fmt: skip
#: Attention as the CPU has it, which torch's counter does not know, by the operation that costs the same.
_ALIKE = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _aten._scaled_dot_product_flash_attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _aten._scaled_dot_product_flash_attention_backward,
}


class Operation(NamedTuple):
    """One operation, as far as its time depends on it."""

    flops: int
    """Floating-point operations: two a multiplication with addition; 0 for all but products and convolutions."""
    moved: int
    """Bytes read and written."""
    arithmetic: Arithmetic


@dataclass(frozen=True)
class OperationCounts:
    """The operations of a piece of work, each with how often it occurs."""

    operations: Counter[Operation] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """Floating-point operations of all products of matrices and convolutions."""
        return sum(one.flops * times for one, times in self.operations.items())

    @property
    def moved(self) -> int:
        """Bytes that all operations read and write."""
        return sum(one.moved * times for one, times in self.operations.items())

    @property
    def launches(self) -> int:
        """How many operations there are."""
        return sum(self.operations.values())

    def seconds(self, of: Callable[[Operation], float]) -> float:
        """The time of all of them, one after the other, by the time of one."""
        return sum(of(one) * times for one, times in self.operations.items())


class OperationCounter(TorchDispatchMode):
    """Notes the operations that run inside, and how much memory they leave allocated at most.

    A tensor without content that is asked for its number answers 1 (a step that was made), or False (nothing is amiss).

    Attributes:
        operations: What was counted.
        allocated: Bytes that were allocated inside and are still in use.
        peak: The most that ``allocated`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[Operation] = Counter()
        self.allocated = self.peak = 0
        self._known: set[int] = set()

    @property
    def counts(self) -> OperationCounts:
        """What was counted so far."""
        return OperationCounts(Counter(self.operations))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and (isinstance(args[0], FakeTensor) or args[0].is_meta):
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        counter = flop_registry.get(_ALIKE.get(name, func._overloadpacket))
        if counter is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if name.startswith("prim::"):
            return result
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        written = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        self._note_memory(read, written)
        if not func.is_view and name not in _IDLE:
            flops = int(counter(*args, **kwargs, out_val=result)) if counter else 0
            moved = sum(size(one) for one in read) + sum(size(one) for one in written)
            self.operations[Operation(flops, moved, _arithmetic(name, read) if flops else "none")] += 1
        return result

    def _note_memory(self, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        before = {one.untyped_storage()._cdata for one in read}
        for tensor in written:
            storage = tensor.untyped_storage()
            key, held = storage._cdata, storage.nbytes()
            if key not in before and key not in self._known:
                self._known.add(key)
                self.allocated += held
                self.peak = max(self.peak, self.allocated)
                weakref.finalize(storage, self._freed, key, held)

    def _freed(self, key: int, held: int) -> None:
        self._known.discard(key)
        self.allocated -= held


def size(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.element_size()


def _arithmetic(name: str, read: Sequence[Tensor]) -> Arithmetic:
    if read[0].element_size() < 4:
        return "half"
    return "convolution" if "conv" in name else "single"
