"""Where the pre-activations of a network's stages, and their batch norms, are found in its graph of computation.

Nothing here knows a network by name. One dry forward pass records autograd's graph, whose nodes, unlike tensors, tell
the values apart that an activation in place writes into the same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from kd_bench.models.timm_interface import cannot, dry_run, intermediates
from kd_bench.types import Output

#: Where the classes of activations come from.
_ACTIVATIONS = {"torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me"}

#: What autograd calls activations that a network applies as functions.
_FUNCTIONS = ("Relu", "LeakyRelu", "Elu", "Silu", "Gelu", "Hardtanh", "Hardswish", "Mish")


class ActivationCall(NamedTuple):
    """The call of an activation that puts out a stage."""

    module: str
    """Its name in the network."""
    call: int
    """Which of the module's calls in a forward pass, from 0."""
    overwritten: bool
    """Whether its input is gone later on, as with activations in place."""
    pool: str | None
    """The name of the max pooling between it and the stage, which goes with any activation that never falls."""


class _Call(NamedTuple):
    module: str
    number: int
    read: Tensor
    version: int
    node: Node


#: What ``sources`` found. Beside the networks and not in them, so that neither copies nor files of them have it.
_found: WeakKeyDictionary[nn.Module, tuple[ActivationCall | None, ...]] = WeakKeyDictionary()


def sources(network: nn.Module, image: tuple[int, ...]) -> tuple[ActivationCall | None, ...]:
    """What puts out each stage of a network with timm's interface; found once a network.

    Args:
        network: Its weights and buffers stay as they are.
        image: (C, H, W) of an image that it takes.

    Returns:
        One entry a stage: None where no activation does, and the stage is its own pre-activation.

    Raises:
        UserError: Where a stage has no pre-activation that is known here.
    """
    if network not in _found:
        _found[network] = _find(network, image)
    return _found[network]


def share_sources(network: nn.Module, other: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> None:
    """Lets a copy of a network have the same sources, also once its batch norms, by which some are found, are gone.

    Args:
        network: As for ``sources``.
        other: Its copy, whose activations have the same names.
        image: As for ``sources``.
        needs: What is asked of both; nothing is to be done where pre-activations are not, or are the network's own.
    """
    if "preacts" in needs and not hasattr(network, "forward_stages"):
        _found[other] = sources(network, image)


@contextmanager
def keeping(
    network: nn.Module, wanted: Iterable[ActivationCall | None]
) -> Iterator[Callable[[list[Tensor]], list[Tensor]]]:
    """Keeps what the activations read in the one forward pass that runs inside.

    What the network computes stays untouched: a pre-activation that will be overwritten is kept as a copy.

    Args:
        network: The network.
        wanted: As from ``sources``.

    Yields:
        A function to call after the pass: from the stages to their pre-activations, both (B, C, H, W) each.
    """
    wanted = tuple(wanted)
    calls: dict[str, dict[int, bool]] = {}
    for source in filter(None, wanted):
        calls.setdefault(source.module, {})[source.call] = source.overwritten
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        counter = itertools.count()

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            number = next(counter)
            if number in calls[name]:
                kept[name, number] = inputs[0].clone() if calls[name][number] else inputs[0]

        return hook

    def preacts(stages: list[Tensor]) -> list[Tensor]:
        return [
            stage if source is None else _preact(network, source, kept)
            for source, stage in zip(wanted, stages, strict=True)
        ]

    with ExitStack() as hooks:
        for name in calls:
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(keep(name)))
        yield preacts


@contextmanager
def noting_norms(network: nn.Module) -> Iterator[dict[Node, _BatchNorm]]:
    """Notes which batch norm each of their nodes in the graph belongs to, for the forward passes that run inside."""
    noted: dict[Node, _BatchNorm] = {}

    def note(norm: nn.Module, _: Any, output: Tensor) -> None:
        # timm's batch norms may hold the activation that follows them.
        node = output.grad_fn
        while node is not None and "BatchNorm" not in node.name():
            node = node.next_functions[0][0] if node.next_functions else None
        if node is not None and isinstance(norm, _BatchNorm):
            noted[node] = norm

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                hooks.enter_context(module.register_forward_hook(note))
        yield noted


def affine(preact: Tensor, noted: Mapping[Node, _BatchNorm]) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, (C,) each, of the batch norm that puts a pre-activation out.

    Of a sum that is the one at the end of the longer way through the network, i.e. of the residual branch and not of
    the shortcut, be that the block's input or a convolution of it; of a map times a gate that is computed from it
    (squeeze and excitation) it is the map's.

    Args:
        preact: (B, C, H, W), with its graph.
        noted: As from ``noting_norms``.

    Returns:
        None where something else stands at the end, e.g. a convolution, a concatenation, or several equal branches.
    """
    node = _norm_behind(preact.grad_fn, noted)
    if node is None or noted[node].num_features != preact.shape[1]:
        return None
    norm = noted[node]
    scale = preact.new_ones(preact.shape[1]) if norm.weight is None else norm.weight
    shift = preact.new_zeros(preact.shape[1]) if norm.bias is None else norm.bias
    return scale, shift


def _norm_behind(node: Node | None, noted: Mapping[Node, _BatchNorm]) -> Node | None:
    depths = _depths(node)
    while node is not None and node not in noted:
        # A weight that takes part, e.g. a layer's scale, is no way back to the input.
        read = [one for one, _ in node.next_functions if one is not None and "AccumulateGrad" not in one.name()]
        depth = [depths[one] for one in read]
        name = node.name().partition("Backward")[0]
        if name == "Add" and len(read) == 2 and depth[0] != depth[1]:
            node = read[depth.index(max(depth))]
        elif name == "Mul" and len(read) == 2:
            node = read[depth.index(min(depth))]
        elif name in ("Clone", "MaxPool2DWithIndices", "MaxPool2D"):
            node = read[0]
        else:
            return None
    return node


def _find(network: nn.Module, image: tuple[int, ...]) -> tuple[ActivationCall | None, ...]:
    with dry_run(network, image) as black:
        calls, pools, stages = _record(network, black)
    by_node: dict[Node | None, _Call] = {call.node: call for call in calls}
    found: list[ActivationCall | None] = []
    for index, stage in enumerate(stages):
        pool, node = pools.get(stage.grad_fn, (None, stage.grad_fn))
        call = by_node.get(node)
        if call is not None:
            # Looked at after the pass, since others than the activation may write there too.
            overwritten = call.read._version != call.version
            found.append(ActivationCall(call.module, call.number, overwritten, pool))
        elif node is not None and node.name().partition("Backward")[0] in _FUNCTIONS:
            raise cannot(network, "preacts", f"its stage {index} is put out by an activation that is no module")
        elif not _has(network, _BatchNorm) or _has(network, nn.LayerNorm):
            why = "stands for itself only in convolutional networks with batch norms and no layer norms"
            raise cannot(network, "preacts", f"no activation puts out its stage {index}, and such a stage {why}")
        else:
            found.append(None)
    return tuple(found)


def _record(
    network: nn.Module, images: Tensor
) -> tuple[list[_Call], dict[Node | None, tuple[str, Node | None]], list[Tensor]]:
    """The calls of activations; by its node, each max pooling's name and what it reads; and the stages."""
    calls: list[_Call] = []
    pools: dict[Node | None, tuple[str, Node | None]] = {}
    running: dict[str, tuple[int, int]] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        counter = itertools.count()

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            running[name] = next(counter), inputs[0]._version

        return hook

    def after(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                number, version = running[name]
                calls.append(_Call(name, number, inputs[0], version, output.grad_fn))

        return hook

    def pooling(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                pools[output.grad_fn] = name, inputs[0].grad_fn

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if any(one.__module__ in _ACTIVATIONS for one in type(module).__mro__):
                hooks.enter_context(module.register_forward_pre_hook(before(name)))
                hooks.enter_context(module.register_forward_hook(after(name)))
            elif isinstance(module, nn.MaxPool2d):
                hooks.enter_context(module.register_forward_hook(pooling(name)))
        _, stages = intermediates(network, images, "preacts")
    return calls, pools, stages


def _preact(network: nn.Module, source: ActivationCall, kept: Mapping[tuple[str, int], Tensor]) -> Tensor:
    preact = kept.get((source.module, source.call))
    if preact is None:
        raise cannot(network, "preacts", f"its {source.module} does not run as it did in evaluation mode")
    if source.pool is not None:
        preact = network.get_submodule(source.pool)(preact)
    return preact


def _has(network: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in network.modules())


def _depths(end: Node | None) -> dict[Node, int]:
    """How many nodes the longest way from each node to the network's input has."""
    depths: dict[Node, int] = {}
    waiting = [] if end is None else [end]
    while waiting:
        node = waiting[-1]
        read = [one for one, _ in node.next_functions if one is not None]
        missing = [one for one in read if one not in depths]
        if missing:
            waiting += missing
        else:
            depths[node] = 1 + max((depths[one] for one in read), default=0)
            waiting.pop()
    return depths
