"""An optimiser goes on from a checkpoint, also from one of another device."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.optimizer import _optimizer_to_device
from torch import Tensor, nn

from kd_bench.config.trial import Training
from kd_bench.training.optimizers import build_optimizer, optimizer_state, prepare_for_device
from tests.training.parts import CPU

SETTINGS: list[dict[str, Any]] = [
    {"name": "adamw", "lr": 0.01},
    {"name": "sgd", "lr": 0.01},
    {"name": "dot", "lr": 0.01},
    {"name": "lamb", "lr": 0.01},
]


def optimizer_of(network: nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    return build_optimizer(Training.model_validate({"optimizer": settings}).optimizer, network.parameters())


def stepped(settings: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns a small network after two steps of its optimiser."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = optimizer_of(network, settings)
    for _ in range(2):
        step(network, optimizer)
    return network, optimizer


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.ones(2, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def resumed(settings: dict[str, Any], **group_settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns the network of ``stepped``, with a new optimiser that is restored from the state of the first one.

    Args:
        settings: Settings of the optimisers.
        group_settings: Settings that replace those of all groups of parameters in the state.
    """
    network, optimizer = stepped(settings)
    state = copy.deepcopy(optimizer_state(optimizer))
    for group in state["param_groups"]:
        group.update(group_settings)
    restored = optimizer_of(network, settings)
    restored.load_state_dict(state)
    return network, restored


def move(network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves both as Lightning does, which leaves the numbers of steps where they are."""
    parameters = list(network.parameters())
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as for a GPU, parameters are the same objects
    try:
        network.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
    assert all(map(operator.is_, network.parameters(), parameters))
    _optimizer_to_device(optimizer, device)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, list[Tensor]]:
    tensors: dict[str, list[Tensor]] = {}
    for values in optimizer.state.values():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors.setdefault(name, []).append(value)
    return tensors


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["name"])
def test_all_of_its_state_is_on_the_device_of_the_parameters(settings: dict[str, Any]) -> None:
    """Torch's device "meta" stands for a GPU."""
    network, optimizer = resumed(settings)
    meta = torch.device("meta")
    move(network, optimizer, meta)
    prepare_for_device(optimizer, meta, recordable=False)
    tensors = state_tensors(optimizer)
    assert tensors
    assert {value.device.type for values in tensors.values() for value in values} == {"meta"}
    if settings["name"] == "adamw":
        assert len(tensors["step"]) == 4
        assert all(value.dtype == torch.float32 and value.shape == () for value in tensors["step"])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["name"])
def test_on_the_cpu_it_goes_on_with_the_same_bits(settings: dict[str, Any]) -> None:
    undisturbed, optimizer = stepped(settings)
    step(undisturbed, optimizer)
    network, restored = resumed(settings)
    before = {id(value) for values in state_tensors(restored).values() for value in values}
    prepare_for_device(restored, CPU, recordable=False)
    assert {id(value) for values in state_tensors(restored).values() for value in values} == before
    step(network, restored)
    for parameter, other in zip(undisturbed.parameters(), network.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_a_state_of_a_gpu_goes_on_on_the_cpu() -> None:
    undisturbed, optimizer = stepped(SETTINGS[0])
    step(undisturbed, optimizer)
    network, restored = resumed(SETTINGS[0], capturable=True)
    prepare_for_device(restored, CPU, recordable=False)
    step(network, restored)
    for parameter, other in zip(undisturbed.parameters(), network.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_steps_of_an_optimiser_that_counts_on_the_host_stay_there() -> None:
    network, optimizer = resumed(SETTINGS[0], fused=False)
    meta = torch.device("meta")
    move(network, optimizer, meta)
    prepare_for_device(optimizer, meta, recordable=False)
    assert {value.device.type for value in state_tensors(optimizer)["step"]} == {"cpu"}


def test_the_state_takes_the_layout_of_the_parameters() -> None:
    network, optimizer = resumed(SETTINGS[1])
    network.to(memory_format=torch.channels_last)
    weight = network[0].weight  # type: ignore[index]
    before = optimizer.state[weight]["momentum_buffer"].clone()
    prepare_for_device(optimizer, CPU, recordable=False)
    after = optimizer.state[weight]["momentum_buffer"]
    assert after.stride() == weight.stride() != before.stride()
    assert torch.equal(after, before)


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"momentum": 0.0}], ids=str)
def test_a_parameter_may_get_its_first_gradient_later(settings: dict[str, Any]) -> None:
    """Torch's fused kernel alone would raise a TypeError."""
    both = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    plain = [nn.Parameter(parameter.detach().clone()) for parameter in both]
    sgd = build_optimizer(Training.model_validate({"optimizer": {"name": "sgd", "lr": 0.1} | settings}).optimizer, both)
    group = sgd.param_groups[0]
    names = ("lr", "momentum", "weight_decay", "nesterov")
    reference = torch.optim.SGD(plain, foreach=False, fused=False, **{name: group[name] for name in names})
    for count in (1, 2, 2, 1, 2):
        for parameters, optimizer in ((both, sgd), (plain, reference)):
            torch.stack([parameter.square().sum() for parameter in parameters[:count]]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.allclose(parameter, other) for parameter, other in zip(both, plain, strict=True))
