"""Counters of batch norms that are updated together."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from kd_bench.models import registry as models
from kd_bench.models.batch_norm_counters import BatchNormCounters, count_calls
from kd_bench.types import LOGITS


class Network(nn.Module):
    """Calls one batch norm twice, and another one never; one has no momentum, and one has no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice, self.never, self.once = nn.BatchNorm2d(3), nn.BatchNorm2d(3), BatchNormAct2d(3)
        self.averaging, self.without = nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)
        self.frozen = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.twice(self.conv(self.twice(self.conv(images))))
        return self.frozen(self.without(self.averaging(self.once(x)))).mean((2, 3))


class Additions(TorchDispatchMode):
    """Records the names of the operations that add."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "add_" in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Network().train()
    network.frozen.eval()
    return network


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_states_are_those_of_plain_training(network: nn.Module, compiled: bool) -> None:
    plain = copy.deepcopy(network)
    counters = BatchNormCounters(network, count_calls(network, (3, 8, 8), LOGITS) if compiled else None)
    traced = CompileCounter()
    run = torch.compile(network, backend=traced) if compiled else network
    tensors = dict(network.named_buffers())
    compilations = []
    for step in range(3):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        with counters.updated_together():
            logits = run(images)
        compilations.append(traced.frame_count)
        assert torch.equal(logits, plain(images))
        state = network.state_dict()
        assert list(state) == list(plain.state_dict())
        for name, value in plain.state_dict().items():
            assert torch.equal(state[name], value), (step, name)
    assert state["twice.num_batches_tracked"] == 6
    assert state["never.num_batches_tracked"] == state["frozen.num_batches_tracked"] == 0
    assert all(tensors[name] is buffer for name, buffer in network.named_buffers())
    assert len(set(compilations)) == 1
    assert bool(compilations[0]) == compiled


def test_one_operation_adds_for_all() -> None:
    network = models.create("cifar_shufflenet_v1", 10, 32).train()
    counters = BatchNormCounters(network)
    with Additions() as seen, counters.updated_together():
        network(torch.randn(2, 3, 32, 32))
    assert [name for name in seen.names if "foreach" in name] == ["aten._foreach_add_.Scalar"]
    assert len(seen.names) == 1
    counts = [value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counts) > 40
    assert all(count == 1 for count in counts)


def test_an_error_changes_no_counter(network: nn.Module) -> None:
    network.without.register_forward_hook(lambda *_: 1 / 0)
    counter = network.once.num_batches_tracked
    with pytest.raises(ZeroDivisionError), BatchNormCounters(network).updated_together():
        network(torch.randn(4, 3, 8, 8))
    assert network.once.num_batches_tracked is counter
    assert counter == network.twice.num_batches_tracked == 0


def test_networks_in_evaluation_mode_and_loaded_counters(network: nn.Module) -> None:
    counters = BatchNormCounters(network)
    state = {
        name: torch.full_like(value, 5) if name.endswith("tracked") else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    network.eval()
    with counters.updated_together():
        network(torch.randn(4, 3, 8, 8))
    assert network.once.num_batches_tracked == 5
    network.train()
    with counters.updated_together():
        network(torch.randn(4, 3, 8, 8))
        network(torch.randn(4, 3, 8, 8))
    assert network.once.num_batches_tracked == 7
    assert network.twice.num_batches_tracked == 9
