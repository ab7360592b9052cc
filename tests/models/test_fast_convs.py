"""Convolutions that a CPU or a GPU computes in another way."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.models import fast_convs
from kd_bench.models import registry as models
from kd_bench.models.conv_product import conv_product
from kd_bench.models.fast_convs import (
    DepthwiseConv2d,
    PointwiseConv2d,
    cuda_memory_format,
    pointwise_way,
    use_fast_convs,
)
from kd_bench.training.isolation import unchanged_process


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Records the shapes of the second factors of matrix products."""
    seen: list[tuple[int, ...]] = []
    real = torch.matmul

    def record(factor: Tensor, other: Tensor) -> Tensor:
        seen.append(tuple(other.shape))
        return real(factor, other)

    monkeypatch.setattr(torch, "matmul", record)
    return seen


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions compute as on a GPU."""
    monkeypatch.setattr(fast_convs, "_device", lambda x: "cuda")


def compare(conv: nn.Conv2d, batch: int, size: int) -> None:
    """Asserts that the fast convolution has the outputs and gradients of the library's."""
    fast = use_fast_convs(copy.deepcopy(conv))
    assert type(fast) is PointwiseConv2d
    x = torch.randn(batch, conv.in_channels, size, size, dtype=conv.weight.dtype).requires_grad_()
    result, expected = fast(x), conv(x)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected)
    factors = torch.randn_like(expected)
    mine = torch.autograd.grad((result * factors).sum(), [x, *fast.parameters()])
    expected_gradients = torch.autograd.grad((expected * factors).sum(), [x, *conv.parameters()])
    for gradient, other in zip(mine, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("channels", "out", "groups", "size", "way"),
    [
        (6, 9, 3, 8, "product"),
        (6, 9, 1, 9, "product"),
        (6, 9, 3, 4, "library"),  # too few pixels
        (4, 300, 1, 8, "library"),  # too many channels for them
        (96, 192, 3, 8, "library"),  # multiples of 16 channels in each group
        (120, 105, 3, 4, "split"),
        (120, 105, 3, 13, "product"),  # too many pixels
        (120, 93, 3, 8, "product"),  # too few channels in a group
    ],
)
def test_a_cpu_convolves_single_pixels_in_the_fastest_way(
    channels: int, out: int, groups: int, size: int, way: str, bias: bool, products: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, 1, groups=groups, bias=bias).double()
    assert pointwise_way("cpu", channels, out, groups, size**2) == way
    compare(conv, 3, size)
    assert bool(products) == (way == "product")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("channels", "out", "groups", "size", "way"),
    [(6, 9, 3, 8, "product"), (240, 60, 3, 4, "product"), (960, 240, 3, 4, "merged"), (6, 9, 1, 8, "library")],
)
def test_a_gpu_convolves_single_pixels_in_groups_by_products_of_matrices(
    channels: int, out: int, groups: int, size: int, way: str, bias: bool
) -> None:
    torch.manual_seed(0)
    assert pointwise_way("cuda", channels, out, groups, size**2) == way
    compare(nn.Conv2d(channels, out, 1, groups=groups, bias=bias).double(), 2, size)


@pytest.mark.usefixtures("on_gpu")
def test_products_on_a_gpu_under_autocast_and_compiled() -> None:
    torch.manual_seed(0)
    for size in (1, 8):
        conv = use_fast_convs(nn.Conv2d(6, 9, 1, groups=3))
        x = torch.randn(2, 6, size, size)
        with torch.autocast("cpu", torch.bfloat16):
            output = conv(x)
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(output, nn.Conv2d.forward(conv, x), rtol=0.02, atol=0.02)
        output.sum().backward()
        gradients = [conv.weight.grad, conv.bias.grad]
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
        compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), conv(x))
        compiled(x).square().sum().backward()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_have_the_precision_of_convolutions(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    factor, other = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    seen = []
    real = torch.bmm

    def record(first: Tensor, second: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return real(first, second)

    monkeypatch.setattr(torch, "bmm", record)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for allowed in (True, False):
            monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
            with unchanged_process("a plug-in"):
                conv_product(factor, other).sum().backward()
            assert seen == [allowed] * 3  # forwards, and one for each gradient
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
            seen.clear()
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [
        ("cifar_wrn_40_2", True),
        ("cifar_mobilenet_v2", True),
        ("cifar_shufflenet_v2", True),
        ("convnext_atto", True),
        ("cifar_shufflenet_v1", False),
        ("vit_tiny_patch16_224", False),
    ],
)
def test_layout_on_a_gpu(name: str, channels_last: bool) -> None:
    with torch.device("meta"):
        network = use_fast_convs(models.create(name, 10, 32))
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert cuda_memory_format(network) == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_channels_by_themselves_with_avx2(
    size: tuple[int, int], layout: torch.memory_format, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=bias).double()
    fast = use_fast_convs(copy.deepcopy(conv))
    x = torch.randn(3, 5, *size, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    expected = conv(x)
    factors = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * factors).sum(), [x, *conv.parameters()])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(F, "conv2d", None)
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    result = fast(x)
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result, expected)
    mine = torch.autograd.grad((result * factors).sum(), [x, *fast.parameters()])
    for gradient, other in zip(mine, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2, 2), {"kernel_size": 3, "padding": 1, "stride": 2}),
        ((2, 2), {"kernel_size": 3, "padding": 2, "dilation": 2}),
        ((2, 2), {"kernel_size": 5, "padding": 2}),
        ((2, 2), {"kernel_size": 3, "padding": 2}),
        ((1, 4), {"kernel_size": 3, "padding": 1}),
        ((3, 3), {"kernel_size": 3, "padding": 1}),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_other_channels_by_themselves_with_avx2(
    size: tuple[int, int], options: dict[str, int], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(DepthwiseConv2d, "_sum_of_products", None)
    conv = nn.Conv2d(5, 5, groups=5, **options)  # type: ignore[arg-type]
    x = torch.randn(3, 5, *size).contiguous(memory_format=layout)
    torch.testing.assert_close(use_fast_convs(copy.deepcopy(conv))(x), conv(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_by_themselves_on_tiny_maps(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(DepthwiseConv2d, "_sum_of_products", None)
    conv = nn.Conv2d(5, 5, 3, stride, padding=1, groups=5)
    fast = use_fast_convs(copy.deepcopy(conv))
    assert type(fast) is DepthwiseConv2d
    for size in (2, 4):
        x = torch.randn(3, 5, size, size)
        result = fast(x)
        assert result.is_contiguous()
        torch.testing.assert_close(result, conv(x))


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


def test_a_pass_in_inference_mode_does_not_break_a_later_training() -> None:
    fast_convs._kernel_indices.cache_clear()
    with torch.inference_mode():
        assert not fast_convs._kernel_indices(2, 2).is_inference()
    weights = torch.randn(9, requires_grad=True)
    weights[fast_convs._kernel_indices(2, 2)].square().sum().backward()
    assert weights.grad is not None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["cifar_shufflenet_v1", "cifar_mobilenet_v2", "efficientnet_b0"])
def test_a_network_computes_the_same_and_keeps_its_names(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_convs, "_device", lambda x: device)
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
    assert all(parameter.grad is not None for parameter in fast.parameters())
