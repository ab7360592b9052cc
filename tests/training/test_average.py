"""The moving average of the weights has the bits of torch's own, and is recorded with the step."""

from __future__ import annotations

import io
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_bench.training.build import build_student
from kd_bench.training.optimizers import MovingAverage
from kd_bench.training.recorder import Replay
from kd_bench.training.student import StudentModule
from tests.training.parts import MemoryWriter, same, splits, trial
from tests.training.tape import TapeLane, TapeRecorder
from tests.training.test_recorded import DATA, run, without


class Network(nn.Module):
    """Has weights of several types and layouts, and buffers of several types and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1).to(memory_format=torch.channels_last)
        )
        self.half = nn.Linear(7, 5, dtype=torch.bfloat16)
        self.double = nn.Linear(3, 3, dtype=torch.float64)
        self.tied = self.half
        self.register_buffer("counts", torch.tensor([[3, -7, 10**9]]))
        self.register_buffer("small", torch.tensor([5, 250], dtype=torch.uint8))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("empty", torch.zeros(0, dtype=torch.int32))


@torch.no_grad()
def change(network: nn.Module, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=draws).to(tensor.dtype))
        else:
            tensor.copy_(torch.randint(0, 100, tensor.shape, generator=draws).to(tensor.dtype) + (tensor > 0))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999, 1.0])
def test_an_update_has_the_bits_of_torchs(decay: float) -> None:
    network = Network()
    average = MovingAverage(network, decay)
    reference = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for step in range(12):
        change(network, step)
        average.update_parameters(network)
        reference.update_parameters(network)
        state, expected = average.state_dict(), reference.state_dict()
        assert list(state) == list(expected)
        assert all(
            state[key].dtype == value.dtype and torch.equal(state[key], value) for key, value in expected.items()
        )
        if step in (0, 5):  # another process goes on
            average = MovingAverage(network, decay)
            average.load_state_dict(state)
    assert int(average.n_averaged) == 12


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.9996, 0.9999])
def test_a_table_of_indices_stays_as_it_is(decay: float) -> None:
    """Swin's tables of relative positions, whose entries torch's average makes smaller by one."""
    network = nn.Module()
    network.register_buffer("index", torch.arange(1000))
    average = MovingAverage(network, decay)
    for _ in range(3):
        average.update_parameters(network)
    assert torch.equal(average.module.get_buffer("index"), torch.arange(1000))


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += torch.Tag.data_dependent_output in func.tags
        return func(*args, **(kwargs or {}))


def test_only_the_first_update_of_a_process_reads_a_number_from_the_device() -> None:
    network = Network()
    begun = MovingAverage(network, 0.9)
    begun.update_parameters(network)
    resumed = MovingAverage(network, 0.9)
    resumed.load_state_dict(begun.state_dict())
    for average in (MovingAverage(network, 0.9), resumed):
        counts = []
        for _ in range(3):
            with Reads() as reads:
                average.update_parameters(network)
            counts.append(reads.count)
        assert counts == [1, 0, 0]


def test_the_average_has_the_layout_of_the_network() -> None:
    network = Network()
    average = MovingAverage(network, 0.9)
    change(average.module, 1)
    before = {key: value.clone() for key, value in average.state_dict().items()}
    weight = average.module.layers[0].weight
    network.to(memory_format=torch.channels_last)
    average.take_layout(network)
    assert average.module.layers[0].weight is weight  # which a compiled pass may hold
    assert weight.stride() == network.layers[0].weight.stride() != before["module.layers.0.weight"].stride()
    assert all(torch.equal(value, before[key]) for key, value in average.state_dict().items())
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_on_a_gpu_the_average_takes_the_layout_that_the_student_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.student.prepare_for_device", lambda *_, **__: None)
    member = build_student(trial("none", ema=0.9), splits(), None, MemoryWriter())
    member.prepare(torch.device("cuda"))
    assert member.average is not None
    average, student = (module.get_submodule("conv1").weight for module in (member.average.module, member.network))
    assert average.stride() == student.stride()
    assert student.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("kd", {}),
        ("none", {"optimizer": {"name": "adamw", "lr": 0.01}}),
        ("simkd", {}),  # with a head of the method
        ("fitnet", {}),
        ("kd", {"precision": "bfloat16"}),
        ("kd", {"optimizer": {"name": "dot", "lr": 0.05}}),
    ],
)
def test_an_average_is_recorded_with_the_step(method: str, changes: dict[str, Any]) -> None:
    trials = [trial(method, epochs=2, ema=0.9, **changes)]
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert (writer.notes, writer.crash) == ([], None)
    assert recorder.replays > 5
    (plain,) = without(trials)
    assert len(plain.notes) == 2  # neither steps nor evaluation were recorded there
    assert same(writer.states, plain.states)
    assert "average_top1" in writer.states[-1]["history"][-1]


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_recorded_average_goes_on_after_a_stop(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it stops, two of the eleven steps of an epoch are left, seven, or none."""
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 4)
    data = splits(16 * 10 + 8)
    trials = [trial("kd", epochs=2, ema=0.9)]
    (whole,), _ = run(trials, TapeRecorder(), data)
    (stopped,), _ = run(trials, TapeRecorder(), data, stop_after=blocks)
    content = stopped.mid_epoch
    assert content is not None

    def restore(member: StudentModule) -> None:
        member.restore_mid_epoch(torch.load(io.BytesIO(content), weights_only=True))

    (resumed,), _ = run(trials, TapeRecorder(), data, restore)
    assert same(resumed.states, whole.states)


def test_the_first_update_is_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a preparation, in which the average is not updated."""
    first_is_recorded: list[bool] = []
    is_recording = False
    record, update = TapeLane.record, MovingAverage.update_parameters

    def noting_record(self: TapeLane, *arguments: Any) -> Replay:
        nonlocal is_recording
        is_recording = True
        try:
            return record(self, *arguments)
        finally:
            is_recording = False

    def noting_update(self: MovingAverage, model: nn.Module) -> None:
        first_is_recorded.append(is_recording and not self._has_begun)
        update(self, model)

    monkeypatch.setattr(TapeLane, "record", noting_record)
    monkeypatch.setattr(MovingAverage, "update_parameters", noting_update)
    trials = [trial("ab", epochs=2, ema=0.9), trial("kd", epochs=2, ema=0.9)]
    recorder = TapeRecorder()
    writers, _ = run(trials, recorder, DATA)
    assert [writer.notes for writer in writers] == [[], []]
    assert recorder.recordings >= 4
    assert first_is_recorded
    assert not any(first_is_recorded)
    for writer, plain in zip(writers, without(trials), strict=True):
        assert same(writer.states, plain.states)


def test_an_average_of_another_network_is_an_error() -> None:
    average = MovingAverage(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match="zip"):
        average.update_parameters(nn.Linear(2, 2, bias=False))
