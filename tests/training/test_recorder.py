"""The parts of recording on a GPU that can be tested without one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.training.observed_step import Observer
from kd_bench.training.recorded_function import NoMemoryToRecord, RecordedFunction, have_same_bits
from kd_bench.training.recorder import CudaGraphRecorder
from kd_bench.utils.memory import is_out_of_memory
from tests.training.tape import TapeLane, TapeRecorder

GPU = torch.device("cuda", 0)

NAN = float("nan")


class Graphs:
    """Stands for torch's CUDA graphs: runs what is recorded, and fails at the end if something has failed before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, half_open: bool) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.half_open = half_open
        self.generator = SimpleNamespace(
            clone_state=lambda: "clean", graphsafe_set_state=lambda state: self.calls.append(("set", state))
        )
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="the replay"))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "default_generators", (self.generator,))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda *pool: self.calls.append(("release", *pool)), raising=False
        )

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        try:
            yield
        except Exception:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None

    def end(self, *pool: Any) -> None:
        if not self.half_open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.calls.append(("end", *pool))


@pytest.mark.parametrize("half_open", [True, False])
def test_a_failed_recording_is_cleaned_up_and_says_what_has_failed(
    monkeypatch: pytest.MonkeyPatch, half_open: bool
) -> None:
    graphs = Graphs(monkeypatch, half_open=half_open)
    (lane,) = CudaGraphRecorder(GPU).lanes(1, one_queue=False)

    def fail() -> None:
        raise ValueError("operation not permitted when stream is capturing")

    with lane.running():
        with pytest.raises(ValueError, match="not permitted") as caught:
            lane.record(fail, [])
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        ended = [("end", 0, (0, 7)), ("release", 0, (0, 7))] if half_open else []
        assert graphs.calls == [*ended, ("set", "clean")]
        assert lane.record(lambda: None, []) == "the replay"  # type: ignore[comparison-overlap]
        assert len(graphs.calls) == len(ended) + 1


def test_one_queue_shares_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Graphs(monkeypatch, half_open=False)
    pools = iter([(0, 1), (0, 2), (0, 3)])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    used = []
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, **_: used.append(pool) or nullcontext())
    for lanes in (CudaGraphRecorder(GPU).lanes(2, one_queue=True), CudaGraphRecorder(GPU).lanes(2, one_queue=False)):
        for lane in lanes:
            lane.record(lambda: None, [])
    assert used == [(0, 1), (0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([0.0, NAN, 1.0], [0.0, NAN, 1.0], True),
        ([0.0], [-0.0], False),
        ([1.0], [1.0 + 1e-7], False),
        ([True, False], [True, True], False),
        ([3, 4], [3, 4], True),
        ([1 + 2j], [1 - 2j], False),
        ([], [], True),
        (2.5, 2.5, True),
    ],
)
def test_bits(first: Any, second: Any, same: bool) -> None:
    one, other = torch.tensor(first), torch.tensor(second)
    assert have_same_bits([one], [other]) is same
    assert have_same_bits([torch.zeros(2), one], [torch.zeros(2), other]) is same


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_bits_of_any_type_and_layout(dtype: torch.dtype) -> None:
    values = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(dtype)
    changed = values.clone()
    changed[1, 2, 3, 3] += 1
    assert have_same_bits([values], [values.to(memory_format=torch.channels_last)])
    assert not have_same_bits([values], [changed])


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("memory"), False),
    ],
    ids=str,
)
def test_errors_about_memory(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) is short


@pytest.mark.parametrize("when", ["recording", "replay"])
def test_memory_may_be_short_at_a_recording_and_at_its_first_replay(when: str) -> None:
    value = torch.zeros(2)
    calls = []

    def function() -> None:
        value.add_(1)
        if when == "recording":
            raise RuntimeError("CUDA error: out of memory")

    def before_replay() -> None:
        raise RuntimeError("CUDA error: out of memory")

    lane = _used_lane()
    with lane.running(), pytest.raises(NoMemoryToRecord):
        RecordedFunction().record(lane, function, lambda: calls.append(1), lambda: [value], before_replay=before_replay)
    assert value.tolist() == [0, 0]
    assert calls == []


def _used_lane() -> TapeLane:
    lane = TapeRecorder().lanes(1, one_queue=False)[0]
    with lane.running():
        pass
    assert isinstance(lane, TapeLane)
    return lane


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modes in which torch is to report what makes it wait, in their order."""
    modes: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def _observe(step: Callable[[Tensor], object]) -> list[str]:
    layer = torch.nn.Linear(1, 1)
    observer = Observer([layer], torch.optim.SGD(layer.parameters(), 0.1), GPU)
    with observer.watching():
        step(layer.weight)
    return observer.reasons


def test_what_waits_for_a_gpu_without_an_operator_that_says_so_is_found_out(modes: list[Any]) -> None:
    def wait(_: Tensor) -> None:
        assert modes[-1] == "warn"
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at x.cpp:1.)", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (reason,) = _observe(wait)
    assert reason.startswith("it makes Python wait for the device (")
    assert "test_recorder.py, line" in reason
    assert modes == [0, "warn", 0]


def test_other_warnings_are_passed_on_and_the_operator_is_named_first(modes: list[Any]) -> None:
    def step(weight: Tensor) -> None:
        weight.sum().item()
        warnings.warn("another", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    with pytest.warns(UserWarning, match="another"):
        reasons = _observe(step)
    assert reasons == ["it reads a number from the device (_local_scalar_dense)"]


def test_the_mode_is_as_before_after_an_error(modes: list[Any]) -> None:
    def fail(_: Tensor) -> None:
        raise ValueError("in a step")

    with pytest.raises(ValueError, match="in a step"):
        _observe(fail)
    assert modes == [0, "warn", 0]
