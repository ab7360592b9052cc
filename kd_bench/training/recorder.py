"""Records the operations that a function starts on a GPU, and replays them: CUDA graphs.

Small networks on small images do not fill a GPU. If every operation is started from Python, most of a step is waiting.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

import torch

from kd_bench.config.trial import Trial
from kd_bench.utils.distributed import is_distributed

#: Runs the recorded operations again, on the same tensors.
Replay = Callable[[], None]

#: Identifies a memory pool of graphs, as torch.cuda.graph_pool_handle() returns it.
_Pool = Any


class Lane(Protocol):
    """A queue of operations. Operations of different lanes may run at the same time."""

    def running(self) -> AbstractContextManager[None]:
        """Inside, operations are queued on this lane, after everything that is queued outside of lanes so far."""

    def join(self) -> None:
        """Makes operations outside of lanes wait for everything that is queued on this lane so far."""

    def record(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
        """Calls a function and records its operations, without running them. Must be called inside ``running()``.

        Args:
            function: Reads and writes tensors that exist before and keep their place in memory.
            generators: The generators that it draws from. A replay draws from their current state.

        Raises:
            Exception: If the function raises it, e.g. because an operation reads a number from the device, or if its
                operations cannot be recorded. Then nothing has changed.
        """


class Recorder(Protocol):
    """Makes the lanes of a device."""

    def lanes(self, count: int, one_queue: bool) -> list[Lane]:
        """Returns lanes.

        Args:
            count: Their number.
            one_queue: Whether all are the same queue. Their recordings then share memory, because they run one after
                the other.
        """

    def generator(self) -> torch.Generator:
        """Returns a new generator of the device."""

    def synchronize(self) -> None:
        """Waits for all operations of the device."""


def choose_recorder(device: torch.device, trial: Trial) -> Recorder | None:
    """Returns the recorder of a cohort's steps; None if they are not recorded.

    Steps are recorded on a GPU, for images in memory. A batch in micro-batches, a batch that several processes share,
    and a step that perturbs images are not.
    """
    plain = trial.pipeline is None and trial.micro_batch is None and trial.adversarial is None
    return CudaGraphRecorder(device) if device.type == "cuda" and plain and not is_distributed() else None


class CudaGraphRecorder(Recorder):
    """Records CUDA graphs. A lane is a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def lanes(self, count: int, one_queue: bool) -> list[Lane]:
        """Returns streams. A graph has memory of its own, unless all are one queue."""
        gc.collect()  # graphs of an earlier cohort, which must not be destroyed during a recording
        if one_queue:
            return [_CudaLane(self._device, torch.cuda.graph_pool_handle())] * count
        return [_CudaLane(self._device) for _ in range(count)]

    def generator(self) -> torch.Generator:
        """Returns a new generator of the device."""
        return torch.Generator(self._device)

    def synchronize(self) -> None:
        """Waits for all operations of the device."""
        torch.cuda.synchronize(self._device)


class _CudaLane(Lane):
    """A CUDA stream.

    Args:
        device: Its device.
        pool: Memory pool that its graphs share; None if each graph has a pool of its own.
    """

    def __init__(self, device: torch.device, pool: _Pool | None = None) -> None:
        self._device, self._pool = device, pool
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
        graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
        for generator in generators:
            graph.register_generator_state(generator)
        failure: Exception | None = None
        try:
            # Other threads, which send heartbeats and write files, may call what is not allowed while this one records.
            with (
                _without_garbage_collection(),
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    function()
                except Exception as error:
                    failure = error
                    raise
        except Exception as error:
            # When a failed recording ends, CUDA raises another error, which does not say what has failed.
            failure = failure or error
            _clean_up_after_failure(self._device, pool, generators)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # a cycle: its traceback has this frame, whose tensors would not be freed
        return graph.replay


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Inside, Python's collector is off, because a recording fails if it destroys a CUDA graph or a loaded kernel."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clean_up_after_failure(device: torch.device, pool: _Pool, generators: Sequence[torch.Generator]) -> None:
    """Ends a recording that has failed, and returns generators to the state outside of recordings.

    Until torch 2.12 an error at the end of a recording (``cudaStreamEndCapture``) leaves it half open: the allocator
    refuses to free memory because a recording seems to go on (pytorch/pytorch#180395), and generators refuse to draw.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    if torch.version.hip is None:  # on ROCm, torch has released the memory, and a second release aborts the process
        with suppress(RuntimeError):  # raised if the recording has ended already
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
    for generator in (torch.cuda.default_generators[index], *generators):
        generator.graphsafe_set_state(generator.clone_state())
