"""Convolutions that a CPU computes in another way."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.models import registry as models
from kd_bench.models.fast_convs import DepthwiseConv2d, PointwiseConv2d, use_fast_convs


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Records the shapes of the second factors of matrix products."""
    seen: list[tuple[int, ...]] = []
    real = torch.matmul

    def record(one: Tensor, other: Tensor) -> Tensor:
        seen.append(tuple(other.shape))
        return real(one, other)

    monkeypatch.setattr(torch, "matmul", record)
    return seen


@pytest.mark.parametrize(
    ("channels", "out", "groups", "size", "bias", "multiplied"),
    [
        (6, 9, 3, 8, False, True),
        (6, 9, 1, 9, True, True),
        (6, 9, 3, 4, True, False),  # too few pixels
        (4, 300, 1, 8, False, False),  # too many channels for them
    ],
)
def test_single_pixels_are_convolved_by_a_product_of_matrices(
    channels: int, out: int, groups: int, size: int, bias: bool, multiplied: bool, products: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, 1, groups=groups, bias=bias).double()
    fast = use_fast_convs(copy.deepcopy(conv))
    assert type(fast) is PointwiseConv2d
    x = torch.randn(3, channels, size, size, dtype=torch.float64).requires_grad_()
    found, expected = fast(x), conv(x)
    assert bool(products) == multiplied
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(expected)
    mine = torch.autograd.grad((found * factors).sum(), [x, *fast.parameters()])
    theirs = torch.autograd.grad((expected * factors).sum(), [x, *conv.parameters()])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_by_themselves_on_tiny_maps(stride: int) -> None:
    conv = nn.Conv2d(5, 5, 3, stride, padding=1, groups=5)
    fast = use_fast_convs(copy.deepcopy(conv))
    assert type(fast) is DepthwiseConv2d
    for size in (2, 4):
        x = torch.randn(3, 5, size, size)
        found = fast(x)
        assert found.is_contiguous()
        torch.testing.assert_close(found, conv(x))


def test_nothing_else_is_done_another_way(products: list[tuple[int, ...]]) -> None:
    strided = nn.Conv2d(4, 4, 1, stride=2)
    reflecting = nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect")
    for conv in (strided, reflecting, nn.Conv2d(4, 4, 3, padding=1)):
        assert type(use_fast_convs(conv)) is nn.Conv2d
    conv = use_fast_convs(nn.Conv2d(4, 6, 1))
    x = torch.randn(2, 4, 8, 8)
    conv(x.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    torch.compile(conv, backend="eager")(x)
    assert not products
    conv(x)
    assert products


@pytest.mark.parametrize("name", ["cifar_shufflenet_v1", "cifar_mobilenet_v2", "efficientnet_b0"])
def test_a_network_computes_the_same_and_keeps_its_names(name: str) -> None:
    network = models.create(name, 10, 32).eval()
    fast = use_fast_convs(copy.deepcopy(network))
    assert any(isinstance(module, PointwiseConv2d) for module in fast.modules())
    assert fast.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        difference = (fast(x) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-5
    loss = F.cross_entropy(fast(x), torch.tensor([1, 2]))
    loss.backward()
    assert all(one.grad is not None for one in fast.parameters())
