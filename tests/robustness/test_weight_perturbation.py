"""Weight perturbation: the move of the published code, which weights are moved, and what is restored."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_bench.robustness.weight_perturbation import keep_buffers, perturb_weights, perturbed_parameters
from tests.robustness.parts import network

GAMMA = 0.005


def published_move(weight: Tensor, gradient: Tensor) -> Tensor:
    """The move of a tensor by ``diff_in_weights`` of the published code: by a proxy's step of SGD up the gradient."""
    proxy = weight + 0.2 * gradient
    step = proxy - weight
    return GAMMA * weight.norm() / (step.norm() + 1e-20) * step


def gradients_of(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]


def test_the_move_is_that_of_the_published_code() -> None:
    weights = perturbed_parameters(network().double())
    gradients, before = gradients_of(weights), [weight.detach().clone() for weight in weights]
    with perturb_weights(weights, gradients, GAMMA):
        for weight, gradient, original in zip(weights, gradients, before, strict=True):
            torch.testing.assert_close(weight.detach() - original, published_move(original, gradient))
            torch.testing.assert_close((weight.detach() - original).norm(), GAMMA * original.norm())
    assert all(torch.equal(weight, original) for weight, original in zip(weights, before, strict=True))


def test_a_gradient_of_zero_moves_nothing() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    before = weight.detach().clone()
    with perturb_weights([weight], [torch.zeros(3, 4)], GAMMA):
        assert torch.equal(weight, before)


def test_weights_of_convolutions_and_linear_layers_are_moved() -> None:
    net = network()
    names = {id(weight): name for name, weight in net.named_parameters()}
    assert [names[id(weight)] for weight in perturbed_parameters(net)] == ["0.weight", "3.weight", "7.weight"]


def test_buffers_are_restored() -> None:
    net = network().train()
    before = copy.deepcopy(dict(net.named_buffers()))
    with keep_buffers(net):
        net(torch.rand(4, 3, 8, 8))
        assert not torch.equal(net.get_buffer("1.running_mean"), before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
