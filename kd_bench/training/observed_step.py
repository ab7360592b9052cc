"""Finds out whether a student's step consists of the same operations every time, so that it can be recorded."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_bench.types import Batch

#: Tags of torch's operators whose result or its size depends on values, which makes a GPU wait.
_READ_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

#: Operators that make a GPU wait but have no tag that says so: they read whether a decomposition has converged.
READING_OPERATORS = frozenset({"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig"})

#: Part of torch's warnings about operations that make Python wait for a GPU.
_WAIT_WARNING = "called a synchronizing CUDA operation"

#: Attributes of every module, which say nothing about a step.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"_buffers", "_parameters"}


@dataclass
class Reads:
    """What a method has read of its batches.

    Attributes:
        names: Names of the numbers that it has read: "epoch", "step".
        epoch_values: Functions of the epoch, and their values.
        generator: Whether it has read ``batch.generator``.
    """

    names: set[str] = field(default_factory=set)
    epoch_values: list[tuple[Callable[[int], float], float]] = field(default_factory=list)
    generator: bool = False

    def hold_in(self, recorded: int, epoch: int) -> bool:
        """Whether a step that was recorded in one epoch is the same in another."""
        if "epoch" in self.names and epoch != recorded:
            return False
        return all(function(epoch) == value for function, value in self.epoch_values)


@dataclass(frozen=True)
class ObservedBatch(Batch):
    """A batch that notes which of its numbers are read."""

    reads: Reads = field(default_factory=Reads)

    @classmethod
    def of(cls, batch: Batch, reads: Reads) -> ObservedBatch:
        """Returns the batch with these notes."""
        return cls(**vars(batch), reads=reads)

    def __getattribute__(self, name: str) -> Any:
        if name in ("epoch", "step"):
            object.__getattribute__(self, "reads").names.add(name)
        elif name == "generator":
            object.__getattribute__(self, "reads").generator = True
        return object.__getattribute__(self, name)

    def epoch_value(self, function: Callable[[int], float]) -> float:
        """See ``Batch``. Notes function and value."""
        value = function(vars(self)["epoch"])
        self.reads.epoch_values.append((function, value))
        return value

    def map(self, function: Callable[[Tensor], Tensor]) -> ObservedBatch:
        """See ``Batch``. Reads no numbers."""
        return ObservedBatch.of(self._plain().map(function), self.reads)

    def rows(self, rows: slice) -> ObservedBatch:
        """See ``Batch``. Reads no numbers."""
        return ObservedBatch.of(self._plain().rows(rows), self.reads)

    def _plain(self) -> Batch:
        return Batch(**{name: value for name, value in vars(self).items() if name != "reads"})


class Observer:
    """Watches a student's steps.

    Args:
        modules: The network and the method.
        optimizer: Their optimiser.
        device: Their device.
        watch_operators: Whether to look at each operator. Compiled code must not be looked at.

    Attributes:
        reasons: Why the observed steps cannot be recorded.
        is_stable: Whether the modules had the same objects and numbers before and after each observed step.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        watch_operators: bool = True,
    ) -> None:
        self._modules, self._optimizer, self._device = list(modules), optimizer, device
        self._watch_operators = watch_operators
        self._state: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.is_stable = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, one step is made. Afterwards ``reasons`` say why it cannot be recorded, if it cannot."""
        state, host_state = self._python_state(), _host_generators()
        operators = _NumberReads() if self._watch_operators else None
        with _noting_waits(self._device) as waits, operators or nullcontext():
            yield
        if operators is not None and operators.names:
            self.reasons.append(f"it reads a number from the device ({sorted(operators.names)[0]})")
        elif waits:
            self.reasons.append(f"it makes Python wait for the device ({waits[0]})")
        if _host_generators() != host_state:
            self.reasons.append("it draws from the generators of Python or NumPy")
        changed = _first_change(state, self._python_state())
        self._state = {} if changed else state  # which may keep alive what a method has kept of one step only
        if changed:
            self.is_stable = False
            self.reasons.append(f"{changed} is another object or number after every step")

    def is_changed(self) -> bool:
        """Whether an object or a number of the modules is another one than after the observed step."""
        return _first_change(self._state, self._python_state()) is not None

    def check_draws(self, before: Tensor, after: Tensor, owner: str) -> None:
        """Adds a reason if the state of torch's global generators has changed."""
        if not torch.equal(before, after):
            self.reasons.append(f"the {owner} draws from torch's global generators")

    def tensors(self) -> list[Tensor]:
        """Returns all tensors that the modules hold: parameters, buffers and others."""
        return [value for value in self._python_state().values() if isinstance(value, Tensor)]

    def _python_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for index, module in enumerate(part for root in self._modules for part in root.modules()):
            name = type(module).__name__
            for attribute, value in vars(module).items():
                if attribute not in _MODULE_ATTRIBUTES:
                    _flatten(value, f"{index}:{name}.{attribute}", state)
        for index, group in enumerate(self._optimizer.param_groups):
            for key, value in group.items():
                if key != "params":
                    _flatten(value, f"{index}:{type(self._optimizer).__name__}.{key}", state)
        return state


def global_generators(device: torch.device) -> Tensor:
    """Returns the state of torch's global generators of the CPU and of a device."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


class _NumberReads(TorchDispatchMode):
    """Notes the operators that make a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        if name in ("index", "index_put", "index_put_"):  # by numbers it has a known size, by a mask it does not
            reads = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            reads = name in READING_OPERATORS or bool(_READ_TAGS & set(func.tags))
        if reads:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def _noting_waits(device: torch.device) -> Iterator[list[str]]:
    """Afterwards, the list has the files and lines that made Python wait for a GPU, with or without a tag."""
    waits: list[str] = []
    if device.type != "cuda":
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if _WAIT_WARNING in str(warning.message):
            waits.append(f"{warning.filename}, line {warning.lineno}")
        elif "Synchronization debug mode" not in str(warning.message):  # torch warns that the mode is a prototype
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _host_generators() -> tuple[Any, ...]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), keys.tobytes(), rest  # type: ignore[union-attr]


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    """Notes a value, and those inside it, by name. A tensor stands for itself and its memory, not for its content."""
    if isinstance(value, Mapping):
        into[f"{name}#"] = len(value)
        for key, item in value.items():
            _flatten(item, f"{name}[{key}]", into)
    elif isinstance(value, (list, tuple, set, frozenset)):
        into[f"{name}#"] = len(value)
        if not isinstance(value, (set, frozenset)):
            for index, item in enumerate(value):
                _flatten(item, f"{name}[{index}]", into)
    else:
        into[name] = value
        if isinstance(value, Tensor) and value.layout == torch.strided:
            into[f"{name}#"] = value.data_ptr()


def _first_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Returns the name of the first value that differs; None if there is none."""
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        simple = isinstance(old, (int, float, str, bool)) and isinstance(new, (int, float, str, bool))
        if (old != new) if simple else (old is not new):
            return name.split(":", 1)[1].rstrip("#")
    return None
