"""The recorder of CUDA graphs calls torch as documented: seen with stand-ins for streams and graphs, without a GPU."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from kd_bench.training.recorder import CudaGraphRecorder

DEVICE = torch.device("cuda", 0)


class FakeCuda:
    """Takes the place of ``torch.cuda``: notes the calls, and keeps the current stream.

    Attributes:
        calls: The calls so far.
        current: The current stream.
        half_open: Whether a failed recording stays half open, as until torch 2.12.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.current: Any = FakeStream(self, "main")
        self.half_open = False

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.calls.append(f"capture on {stream.name} pool={pool} {capture_error_mode}")
        assert not gc.isenabled()
        try:
            with self.stream(stream):
                yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None

    def end(self, device: int, pool: Any) -> None:
        if not self.half_open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.calls.append(f"end {pool} of {device}")


class FakeGenerator:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def clone_state(self) -> str:
        return "state outside of recordings"

    def graphsafe_set_state(self, state: str) -> None:
        self.cuda.calls.append(f"{self.name} gets a {state}")


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.calls.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.cuda.calls.append("register")

    def replay(self) -> None:
        self.cuda.calls.append(f"replay on {self.cuda.current.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    names = iter(f"lane {index}" for index in range(9))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(fake, next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.current)
    monkeypatch.setattr(torch.cuda, "stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(fake))
    pools = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
    monkeypatch.setattr(torch.cuda, "default_generators", (FakeGenerator(fake, "default generator"),))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end)
    release = lambda device, pool: fake.calls.append(f"release {pool} of {device}")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release)
    return fake


def test_a_lane_waits_for_what_came_before_and_is_waited_for(cuda: FakeCuda) -> None:
    first, second = CudaGraphRecorder(DEVICE).lanes(2, one_queue=False)
    with first.running():
        replay = first.record(lambda: cuda.calls.append(f"run on {cuda.current.name}"), [torch.Generator()])
        replay()
    first.join()
    with second.running():
        pass
    assert cuda.calls == [
        "lane 0 waits for main",
        "register",
        "capture on lane 0 pool=(0, 1) thread_local",
        "run on lane 0",
        "replay on lane 0",
        "main waits for lane 0",
        "lane 1 waits for main",
    ]


def test_lanes_that_are_one_queue_share_stream_and_memory(cuda: FakeCuda) -> None:
    lanes = CudaGraphRecorder(DEVICE).lanes(3, one_queue=True)
    assert len(lanes) == 3
    assert len(set(map(id, lanes))) == 1
    for _ in range(2):
        with lanes[0].running():
            lanes[0].record(lambda: None, [])
    assert [call for call in cuda.calls if "capture" in call] == ["capture on lane 0 pool=(0, 1) thread_local"] * 2


def test_other_lanes_share_no_memory(cuda: FakeCuda) -> None:
    for lane in CudaGraphRecorder(DEVICE).lanes(2, one_queue=False):
        lane.record(lambda: None, [])
    assert cuda.calls == [f"capture on lane {index} pool=(0, {index + 1}) thread_local" for index in range(2)]


@pytest.mark.parametrize("half_open", [True, False])
def test_a_failed_recording_is_cleaned_up_and_says_what_has_failed(cuda: FakeCuda, half_open: bool) -> None:
    cuda.half_open = half_open
    (lane,) = CudaGraphRecorder(DEVICE).lanes(1, one_queue=False)
    generator: Any = FakeGenerator(cuda, "own generator")

    def fail() -> None:
        raise ValueError("operation not permitted when stream is capturing")

    with lane.running():
        with pytest.raises(ValueError, match="not permitted"):
            lane.record(fail, [generator])
        assert cuda.current.name == "lane 0"
    assert cuda.current.name == "main"
    assert gc.isenabled()
    ended = ["end (0, 1) of 0", "release (0, 1) of 0"] if half_open else []
    fresh = [f"{name} generator gets a state outside of recordings" for name in ("default", "own")]
    assert cuda.calls[3:] == [*ended, *fresh]
    lane.record(lambda: None, [])
    assert cuda.calls[-1].startswith("capture on lane 0")


def test_nothing_of_a_failed_recording_stays(cuda: FakeCuda) -> None:
    (lane,) = CudaGraphRecorder(DEVICE).lanes(1, one_queue=False)
    made: list[weakref.ref[torch.Tensor]] = []

    def fail() -> None:
        activations = torch.zeros(2)
        made.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        with suppress(torch.OutOfMemoryError):
            lane.record(fail, [])
        assert made[0]() is None
    finally:
        gc.enable()


def test_amds_versions_end_a_failed_recording_by_themselves(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.half_open = True
    monkeypatch.setattr(torch.version, "hip", "7.0")
    (lane,) = CudaGraphRecorder(DEVICE).lanes(1, one_queue=False)
    with pytest.raises(ZeroDivisionError):
        lane.record(lambda: 1 / 0 and None, [])
    assert not [call for call in cuda.calls if call.startswith(("end", "release"))]
