"""A recorder for the CPU that behaves as CUDA graphs do, to test what is built on them without a GPU.

A tape notes every operator that a function starts, with its arguments. Tensors are noted as they are, numbers keep the
values that they had. A replay runs the operators again and writes their results into the same tensors. As with a CUDA
graph, Python's code does not run again, and recording changes no tensor that existed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_bench.config.trial import Trial
from kd_bench.training.observed_step import READING_OPERATORS
from kd_bench.training.recorder import Lane, Recorder, Replay


class TapeRecorder(Recorder):
    """Records tapes.

    Args:
        refuses: Whether nothing can be recorded.
        memory: Number of recordings, of all lanes together, before memory is exhausted; None for no limit. Recordings
            of lanes that are one queue need none.
    """

    def __init__(self, memory: int | None = None, refuses: bool = False) -> None:
        self.memory, self.refuses = memory, refuses
        self.recordings = 0
        self.replays = 0
        self.lane_counts: list[tuple[int, bool]] = []
        self.made: list[TapeLane] = []

    def lanes(self, count: int, one_queue: bool) -> list[Lane]:
        self.lane_counts.append((count, one_queue))
        lanes = [TapeLane(self, one_queue)] * count if one_queue else [TapeLane(self, False) for _ in range(count)]
        self.made += lanes[:1] if one_queue else lanes
        return lanes

    def generator(self) -> torch.Generator:
        return torch.Generator()

    def synchronize(self) -> None:
        pass


class TapeLane(Lane):
    def __init__(self, recorder: TapeRecorder, shares_memory: bool) -> None:
        self.recorder, self.shares_memory = recorder, shares_memory
        self.inside = False
        self.was_used = False

    @contextmanager
    def running(self) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
            self.was_used = True

    def join(self) -> None:
        assert not self.inside

    def record(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
        assert self.inside
        assert self.was_used, "CUDA's libraries get memory at a queue's first operation, which must not be a recording"
        recorder = self.recorder
        if recorder.refuses:
            raise RuntimeError("this recorder refuses")
        if recorder.memory is not None and not self.shares_memory:
            if recorder.memory == 0:
                raise torch.OutOfMemoryError("CUDA out of memory (in a test)")
            recorder.memory -= 1
        tape = Tape(generators)
        states = [generator.get_state() for generator in generators]
        try:
            with tape:
                function()
        finally:
            tape.restore()
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        recorder.recordings += 1

        def replay() -> None:
            assert self.inside
            recorder.replays += 1
            tape.replay()

        return replay


class Tape(TorchDispatchMode):
    """Notes operators, and undoes their changes of tensors that are older than the tape."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators
        self.calls: list[tuple[Any, Any, dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.own_storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags or func.overloadpacket.__name__ in READING_OPERATORS:
            raise RuntimeError("operation not permitted when stream is capturing")
        if torch.Tag.nondeterministic_seeded in func.tags:
            drawn_from = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Generator)]
            states = [
                generator.get_state() for generator in self.generators
            ]  # torch wraps a generator anew at each call
            if not any(torch.equal(value.get_state(), state) for value in drawn_from for state in states):
                raise RuntimeError(f"{func} draws from a generator that is not registered with the recording")
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        # The schema of this operator does not say that it changes the running statistics.
        if func._schema.is_mutable or func is torch.ops.aten.native_batch_norm.default:
            for tensor in inputs:
                key = tensor.untyped_storage().data_ptr()
                if key not in self.own_storages and key not in self.before:
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self.before[key] = (whole, whole.clone())
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        new = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in known]
        self.own_storages |= {tensor.untyped_storage().data_ptr() for tensor in new}
        self.calls.append((func, args, kwargs, new))
        return result

    def restore(self) -> None:
        with torch.no_grad():
            for whole, content in self.before.values():
                whole.copy_(content)
        self.before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, new in self.calls:
                result = func(*args, **kwargs)
                outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
                known = {
                    value.untyped_storage().data_ptr()
                    for value in tree_leaves((args, kwargs))
                    if isinstance(value, Tensor)
                }
                fresh = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in known]
                for tensor, value in zip(new, fresh, strict=True):
                    tensor.copy_(value)


class Tapes:
    """Makes a recorder for each cohort, as ``choose_recorder`` does, and keeps them."""

    def __init__(self) -> None:
        self.made: list[TapeRecorder] = []

    def __call__(self, device: torch.device, trial: Trial) -> Recorder:
        self.made.append(TapeRecorder())
        return self.made[-1]
