"""A frozen network's batch norms as part of the convolutions before them."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from kd_bench.models.fast_convs import DepthwiseConv2d, PointwiseConv2d
from kd_bench.models.outputs import observe
from kd_bench.models.preactivations import share_sources
from kd_bench.models.timm_interface import dry_run
from kd_bench.types import LOGITS, Output, Outputs
from kd_bench.utils.errors import UserError

log = logging.getLogger(__name__)

#: Largest difference to the network as it was, relative to its largest logit, with which one that is folded is used.
TOLERANCE = 1e-5


class Folded(nn.Module):
    """What is left of a batch norm that is folded away: what timm's do beside normalising, under the same names."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.drop = getattr(norm, "drop", None) or nn.Identity()
        self.act = getattr(norm, "act", None) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        activated: Tensor = self.act(self.drop(x))
        return activated


def fold(network: nn.Module, image: tuple[int, ...]) -> nn.Module:
    """A copy for inference, in which batch norms that follow a convolution, and nothing else reads it, are part of it.

    In evaluation mode a batch norm is a scale and a shift of each channel; both go into the convolution's weights, in
    float64, so that what the network puts out differs by rounding only. Which norm follows which convolution is found
    from the graph of one dry forward pass, so it holds for any network. A network in which nothing can be folded, or
    whose copy puts out something else, is returned as it is.

    Args:
        network: In evaluation mode, with timm's interface; stays as it is.
        image: (C, H, W) that it takes.

    Returns:
        The copy, without gradients, or the network itself. It gives all outputs that the network gives, whatever will
        be asked of it, so that what it computes does not depend on that.
    """
    counted = isinstance(next(network.parameters()), FakeTensor)  # without numbers, and as it is written
    if counted or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    found = copy.deepcopy(network).requires_grad_(False)
    outputs = _outputs(network, image)
    share_sources(network, found, image, outputs)
    pairs = _pairs(found, image, outputs)
    if not pairs:
        return network
    for conv, name, norm in pairs:
        _fold(conv, norm)
        found.set_submodule(name, Folded(norm))
    return found if _same(network, found, image) else network


def _outputs(network: nn.Module, image: tuple[int, ...]) -> frozenset[Output]:
    """All that a network can give."""
    found: frozenset[Output] = LOGITS
    every: tuple[Output, ...] = ("pooled", "stages", "preacts")
    for output in every:
        with contextlib.suppress(UserError), dry_run(network, image) as black:
            observe(network, black, found | {output})
            found |= {output}
    return found


def _pairs(
    network: nn.Module, image: tuple[int, ...], needs: frozenset[Output]
) -> list[tuple[nn.Conv2d, str, _BatchNorm]]:
    """The convolutions, and names and modules of the batch norms that follow them."""
    convs: dict[Node, nn.Conv2d] = {}
    norms: list[tuple[Node | None, str, _BatchNorm]] = []
    calls: Counter[nn.Module] = Counter()
    owners = Counter(id(one) for module in network.modules() for one in module.parameters(recurse=False))

    def seen(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[module] += 1
            if isinstance(module, _BatchNorm):
                norms.append((inputs[0].grad_fn, name, module))
            elif isinstance(module, nn.Conv2d) and output.grad_fn is not None:
                convs[output.grad_fn] = module

        return hook

    hooks = [
        module.register_forward_hook(seen(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, _BatchNorm))
    ]
    try:
        with dry_run(network, image) as black:
            outputs = observe(network, black, needs)
            readers = _readers(outputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for node, name, norm in norms:
        if node is None or node not in convs or readers[node] != 1:
            continue
        conv = convs[node]
        plain = (
            type(conv) in (nn.Conv2d, PointwiseConv2d, DepthwiseConv2d)
            and not is_parametrized(conv)
            and owners[id(conv.weight)] == 1
        )
        if plain and norm.track_running_stats and calls[conv] == calls[norm] == 1:
            found.append((conv, name, norm))
    return found


def _readers(outputs: Outputs) -> Counter[Node]:
    """How often each node of the graph is read, by another one or as an output."""
    tensors = [outputs.logits, *outputs.stages, *outputs.preacts]
    tensors += [] if outputs.pooled is None else [outputs.pooled]
    ends = {id(one): one.grad_fn for one in tensors if one.grad_fn is not None}
    readers = Counter(ends.values())
    waiting, visited = list(readers), set(readers)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if node not in visited:
                    visited.add(node)
                    waiting.append(node)
    return readers


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    scale = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -mean.double() if conv.bias is None else conv.bias.double() - mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


@torch.no_grad()
def _same(network: nn.Module, folded: nn.Module, image: tuple[int, ...]) -> bool:
    like = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image, generator=generator).to(like)
    with torch.autocast(like.device.type, enabled=False):
        before, after = network(images), folded(images)
    difference = float((before - after).abs().max() / before.abs().max().clamp_min(1e-6))
    if difference <= TOLERANCE:
        return True
    log.warning("the teacher's batch norms are not folded: its logits would differ by %.0e of the largest", difference)
    return False
