"""A function of tensors that is recorded once, checked, and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kd_bench.training.metrics import MetricSums
from kd_bench.training.recorder import Lane, Replay
from kd_bench.utils.errors import first_line
from kd_bench.utils.memory import is_out_of_memory

#: Integer types by their size in bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NoMemoryToRecord(MemoryError):
    """Memory does not suffice for a recording. Nothing has changed."""


class RecordedFunction:
    """Records a function, and replays it if a replay has the same result as the function, to the last bit.

    Args:
        sums: The metrics that the function adds to.

    Attributes:
        reason: Why the function cannot be recorded; None if it can, or if this is unknown yet.
    """

    def __init__(self, sums: Sequence[MetricSums] = ()) -> None:
        self.reason: str | None = None
        self._sums = sums
        self._counts: list[tuple[int, frozenset[str]]] = []
        self._replay: Replay | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether ``replay`` may be called."""
        return self._replay is not None

    def forget(self) -> None:
        """Forgets the recording, and frees its memory."""
        self._replay = None

    def replay(self) -> None:
        """Runs the recorded operations again."""
        assert self._replay is not None
        self._replay()
        for sums, (images, names) in zip(self._sums, self._counts, strict=True):
            sums.count(images, names)

    def record(
        self,
        lane: Lane,
        function: Callable[[], None],
        run: Callable[[], None],
        tensors: Callable[[], Sequence[Tensor]],
        *,
        before_replay: Callable[[], None] = lambda: None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        """Records a function and checks a replay. Afterwards the tensors are as after one call of ``run``.

        Args:
            lane: The lane to record on, inside its ``running()``.
            function: The function to record.
            run: Does the same without a recording.
            tensors: Returns the tensors that both change.
            before_replay: Called before a replay, e.g. to seed generators.
            generators: The generators that the function draws from.

        Raises:
            NoMemoryToRecord: Then ``run`` was not called.
        """
        self._replay = None
        replay = self._try_to_record(lane, function, generators)
        if replay is None:  # not in an except block, because the error keeps alive what the function has made
            run()
            return
        changed = _unique(tensors())
        with _converting_memory_errors():
            before = [tensor.clone() for tensor in changed]
            try:
                before_replay()
                replay()
                replayed = [tensor.clone() for tensor in changed]
            finally:
                with torch.no_grad():
                    for tensor, value in zip(changed, before, strict=True):
                        tensor.copy_(value)
        run()
        if have_same_bits(changed, replayed):
            self._replay = replay
        else:
            self.reason = "a replay of its operations has another result"

    def _try_to_record(
        self, lane: Lane, function: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> Replay | None:
        """Records a function. If that fails, notes the reason and returns None."""
        try:
            with _converting_memory_errors(), self._counting():
                return lane.record(function, generators)
        except NoMemoryToRecord:
            raise
        except Exception as error:
            self.reason = f"{type(error).__name__}: {first_line(error)}"
            return None

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Inside, the function is called. Notes what it counts, and undoes it, because nothing was computed."""
        before = [(sums.images, frozenset(sums.names)) for sums in self._sums]
        try:
            yield
        finally:
            self._counts = []
            for sums, (images, names) in zip(self._sums, before, strict=True):
                self._counts.append((sums.images - images, frozenset(sums.names)))
                sums.reset_count(images, names)


@contextmanager
def _converting_memory_errors() -> Iterator[None]:
    """Inside, an error that says that memory is exhausted is raised as ``NoMemoryToRecord``."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise NoMemoryToRecord from error
        raise


def have_same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether tensors are equal in pairs, to the last bit. Reads one number for each device."""
    differ: dict[torch.device, list[Tensor]] = {}
    for left, right in zip(first, second, strict=True):
        differ.setdefault(left.device, []).append((_bits(left) != _bits(right)).any())
    return not any(bool(torch.stack(flags).any()) for flags in differ.values())


def _bits(tensor: Tensor) -> Tensor:
    """Returns the bits of a tensor as integers: 0.0 and -0.0 differ, and NaN equals NaN."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
