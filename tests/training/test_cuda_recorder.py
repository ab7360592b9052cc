"""The recorder of CUDA graphs calls torch as documented: seen with stand-ins for streams and graphs, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kd_bench.training.recorder import CudaGraphRecorder

DEVICE = torch.device("cuda", 0)


class FakeCuda:
    """Notes what is called, and keeps the current stream."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.current: Any = FakeStream(self, "main")

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
        with self.stream(stream):
            yield


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
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
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
        "capture on lane 0 pool=None thread_local",
        "run on lane 0",
        "replay on lane 0",
        "main waits for lane 0",
        "lane 1 waits for main",
    ]


def test_lanes_that_are_one_queue_share_stream_and_memory(cuda: FakeCuda) -> None:
    lanes = CudaGraphRecorder(DEVICE).lanes(3, one_queue=True)
    assert len(lanes) == 3
    assert len(set(map(id, lanes))) == 1
    with lanes[0].running():
        lanes[0].record(lambda: None, [])
    assert cuda.calls[-1] == "capture on lane 0 pool=(0, 7) thread_local"


def test_the_stream_is_the_old_one_after_a_recording_that_failed(cuda: FakeCuda) -> None:
    (lane,) = CudaGraphRecorder(DEVICE).lanes(1, one_queue=False)

    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError), lane.running():
        lane.record(fail, [])
    assert cuda.current.name == "main"
