"""A step is recorded only if a replay has the same bits, memory suffices, and nothing makes Python wait for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.training.observed_step import Observer
from kd_bench.training.recorded_function import NoMemoryToRecord, RecordedFunction, have_same_bits
from kd_bench.utils.memory import is_out_of_memory
from tests.training.tape import TapeLane, TapeRecorder

GPU = torch.device("cuda", 0)

NAN = float("nan")


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
def test_have_same_bits(first: Any, second: Any, same: bool) -> None:
    tensor, other = torch.tensor(first), torch.tensor(second)
    assert have_same_bits([tensor], [other]) is same
    assert have_same_bits([torch.zeros(2), tensor], [torch.zeros(2), other]) is same


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
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."), True),
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
    assert "test_recorded_function.py, line" in reason
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
