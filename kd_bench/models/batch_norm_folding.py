"""Folds the batch norms of a frozen network into the convolutions before them."""

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
from kd_bench.models.preactivations import share_stage_activations
from kd_bench.models.timm_interface import dry_run
from kd_bench.types import LOGITS, Output, Outputs
from kd_bench.utils.errors import UserError

log = logging.getLogger(__name__)

#: Largest accepted difference of the logits of a folded network, relative to the network's largest logit.
TOLERANCE = 1e-5


class Folded(nn.Module):
    """Replaces a folded batch norm: keeps dropout and activation of timm's batch norms, under the same names."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.drop = getattr(norm, "drop", None) or nn.Identity()
        self.act = getattr(norm, "act", None) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        activated: Tensor = self.act(self.drop(x))
        return activated


def fold(network: nn.Module, image: tuple[int, ...]) -> nn.Module:
    """Returns a copy for inference, in which batch norms are folded into convolutions that only they read.

    In evaluation mode a batch norm is a scale and a shift of each channel. Both are folded into the convolution's
    weights in float64, so that outputs differ only by rounding. The graph of one dry forward pass shows which norm
    follows which convolution, so this works for any network. The network itself is returned if nothing can be folded,
    or if the outputs of the copy differ.

    Args:
        network: A network in evaluation mode, with timm's interface; does not change.
        image: (C, H, W) of an image that it can process.

    Returns:
        The copy, without gradients, or the network itself. The copy has all outputs that the network has, so that its
        computation does not depend on the outputs that are requested later.
    """
    is_fake = isinstance(next(network.parameters()), FakeTensor)  # costs are counted for the network as written
    if is_fake or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    folded = copy.deepcopy(network).requires_grad_(False)
    outputs = _available_outputs(network, image)
    share_stage_activations(network, folded, image, outputs)
    pairs = _foldable_pairs(folded, image, outputs)
    if not pairs:
        return network
    for conv, name, norm in pairs:
        _fold(conv, norm)
        folded.set_submodule(name, Folded(norm))
    return folded if _is_close(network, folded, image) else network


def _available_outputs(network: nn.Module, image: tuple[int, ...]) -> frozenset[Output]:
    available: frozenset[Output] = LOGITS
    others: tuple[Output, ...] = ("pooled", "features", "stages", "preacts")
    for output in others:
        with contextlib.suppress(UserError), dry_run(network, image) as black:
            observe(network, black, available | {output})
            available |= {output}
    return available


def _foldable_pairs(
    network: nn.Module, image: tuple[int, ...], needs: frozenset[Output]
) -> list[tuple[nn.Conv2d, str, _BatchNorm]]:
    """Returns the convolutions, and names and modules of the batch norms that follow them."""
    convs: dict[Node, nn.Conv2d] = {}
    norms: list[tuple[Node | None, str, _BatchNorm]] = []
    calls: Counter[nn.Module] = Counter()
    owners = Counter(id(weight) for module in network.modules() for weight in module.parameters(recurse=False))

    names = {module: name for name, module in network.named_modules()}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, _BatchNorm):
            norms.append((inputs[0].grad_fn, names[module], module))
        elif isinstance(module, nn.Conv2d) and output.grad_fn is not None:
            convs[output.grad_fn] = module

    with contextlib.ExitStack() as hooks:
        for module in names:
            if isinstance(module, (nn.Conv2d, _BatchNorm)):
                hooks.enter_context(module.register_forward_hook(record))
        with dry_run(network, image) as black:
            readers = _readers(observe(network, black, needs))
    pairs = []
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
            pairs.append((conv, name, norm))
    return pairs


def _readers(outputs: Outputs) -> Counter[Node]:
    """Returns how often each node of the graph is read, by another node or as an output."""
    ends = {id(tensor): tensor.grad_fn for tensor in outputs.tensors() if tensor.grad_fn is not None}
    readers = Counter(ends.values())
    stack = list(readers)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if readers[node] == 1:  # reached for the first time
                    stack.append(node)
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
def _is_close(network: nn.Module, folded: nn.Module, image: tuple[int, ...]) -> bool:
    if not _is_exact(next(network.parameters()).device):
        network, folded = (copy.deepcopy(original).cpu() for original in (network, folded))
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


def _is_exact(device: torch.device) -> bool:
    """Whether a device computes convolutions in their own precision.

    A GPU computes those of float32 in TF32 by default, whose rounding alone is about a hundred times the tolerance.
    """
    return device.type == "cpu"
