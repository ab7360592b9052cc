"""Every network of ours under the number formats, layouts, sizes and graph capture that torch offers."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kd_bench.models import create, own_models
from kd_bench.models.cifar_network import CifarNet
from kd_bench.models.outputs import observe
from kd_bench.types import Output, Outputs

NUM_CLASSES = 7
ALL: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})


def images(count: int, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


#: Deep or wide ones, made of the same blocks as others.
LARGE = {
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_wrn_28_10_swish",
    "cifar_wrn_34_10",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in own_models()],
)
def network(request: pytest.FixtureRequest) -> CifarNet:
    """In evaluation mode, with batch norms whose statistics fit their inputs.

    Under statistics drawn at random the logits of an untrained network hardly depend on its image, and so on mistakes.
    """
    torch.manual_seed(0)
    built = create(request.param, NUM_CLASSES)
    assert isinstance(built, CifarNet)
    norms = [layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        built.train()(images(8, seed=2))
    for norm in norms:
        norm.momentum = 0.0  # what follows trains, too, and changes them no more
    return built.eval()


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(network: CifarNet) -> Outputs:
    outputs = observe(network, images(2), ALL)
    logits, other = outputs.logits
    assert distance(logits, other) > 0.05
    return outputs


def distance(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to that of what is expected."""
    return ((result.float() - expected).norm() / expected.norm()).item()


def tensors(outputs: Outputs) -> Iterator[Tensor]:
    yield outputs.logits
    yield from outputs.stages
    yield from outputs.preacts
    assert outputs.pooled is not None
    yield outputs.pooled


@torch.no_grad()
def test_bfloat16_autocast(network: CifarNet, expected: Outputs) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = observe(network, images(2), ALL)
    assert outputs.logits.dtype == torch.bfloat16
    # Untrained networks amplify what rounding does to the first layers, the deep ones with narrow places most.
    assert distance(outputs.stages[0], expected.stages[0]) < 0.01
    assert distance(outputs.logits, expected.logits) < 0.4


def test_trains_under_bfloat16_autocast(network: CifarNet) -> None:
    network.train()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images(2))
        logits.float().square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name
    finally:
        network.zero_grad(set_to_none=True)
        network.eval()


@torch.no_grad()
def test_channels_last(network: CifarNet, expected: Outputs) -> None:
    built = copy.deepcopy(network).to(memory_format=torch.channels_last)
    outputs = observe(built, images(2).to(memory_format=torch.channels_last), ALL)
    for output in (*outputs.stages, *outputs.preacts):
        assert output.is_contiguous(memory_format=torch.channels_last)
    for output, other in zip(tensors(outputs), tensors(expected), strict=True):
        assert distance(output, other) < 1e-3


@torch.no_grad()
def test_larger_images(network: CifarNet, request: pytest.FixtureRequest) -> None:
    outputs = observe(network, images(1, size=64), ALL)
    reductions = [info["reduction"] for info in network.feature_info]
    if "cifar_vgg" in request.node.name:  # the published definition pools such images once more
        reductions[-1] *= 2
    widths = [info["num_chs"] for info in network.feature_info]
    shapes = [(1, width, 64 // reduction, 64 // reduction) for width, reduction in zip(widths, reductions, strict=True)]
    assert [stage.shape for stage in outputs.stages] == shapes
    assert [preact.shape for preact in outputs.preacts] == shapes
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (1, network.num_features)
    assert outputs.logits.shape == (1, NUM_CLASSES)
    assert outputs.logits.isfinite().all()


@torch.no_grad()
def test_exports(network: CifarNet, expected: Outputs) -> None:
    program: Callable[[Tensor], Tensor] = torch.export.export(network, (images(2),)).module()
    assert distance(program(images(2)), expected.logits) < 1e-5


@torch.no_grad()
def test_observing_compiles_to_one_graph(network: CifarNet, expected: Outputs) -> None:
    torch._dynamo.reset()  # or the networks of one class would count as recompilations of the same code
    function = torch.compile(lambda batch: observe(network, batch, ALL), fullgraph=True, backend="eager")
    for output, other in zip(tensors(function(images(2))), tensors(expected), strict=True):
        assert distance(output, other) < 1e-5
