"""Finds the pre-activations of a network's stages, and the batch norms behind them, in its autograd graph.

The search works for any network. One dry forward pass records the graph. Nodes of the graph, unlike tensors,
distinguish values that an in-place activation writes into the same memory.
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

from kd_bench.models.timm_interface import dry_run, intermediates, missing_output
from kd_bench.types import Output

#: Modules that define the classes of activations.
_ACTIVATIONS = {"torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me"}

#: autograd's names of activations that a network applies as functions.
_FUNCTIONS = ("Relu", "LeakyRelu", "Elu", "Silu", "Gelu", "Hardtanh", "Hardswish", "Mish")


class ActivationCall(NamedTuple):
    """The call of the activation at the end of a stage."""

    module: str
    """Name of the activation in the network."""
    call: int
    """Index of the call among the module's calls in a forward pass."""
    overwritten: bool
    """Whether the input is overwritten later, as by in-place activations."""
    pool: str | None
    """Name of the max pooling between activation and stage; it commutes with every activation that never decreases."""


class _Call(NamedTuple):
    module: str
    number: int
    input: Tensor
    version: int
    node: Node


#: Results of ``stage_activations``. They are not attributes of the networks, so that copies and files do not have them.
_cache: WeakKeyDictionary[nn.Module, tuple[ActivationCall | None, ...]] = WeakKeyDictionary()


def stage_activations(network: nn.Module, image: tuple[int, ...]) -> tuple[ActivationCall | None, ...]:
    """Returns the activation at the end of each stage of a network with timm's interface; the result is cached.

    Args:
        network: Its weights and buffers do not change.
        image: (C, H, W) of an image that it can process.

    Returns:
        One entry per stage; None if the stage ends without an activation and is its own pre-activation.

    Raises:
        UserError: If a stage has no known pre-activation.
    """
    if network not in _cache:
        _cache[network] = _find_activations(network, image)
    return _cache[network]


def share_stage_activations(
    network: nn.Module, other: nn.Module, image: tuple[int, ...], needs: frozenset[Output]
) -> None:
    """Copies the cached activations to ``other``, a copy of the network whose batch norms will be removed.

    The search reads batch norms. Nothing is copied if ``needs`` lacks "preacts", or with our ``forward_stages``.
    """
    if "preacts" in needs and not hasattr(network, "forward_stages"):
        _cache[other] = stage_activations(network, image)


@contextmanager
def capture_preacts(
    network: nn.Module, activations: Iterable[ActivationCall | None]
) -> Iterator[Callable[[list[Tensor]], list[Tensor]]]:
    """Captures the inputs of the activations in the one forward pass that runs inside.

    The network's computation does not change: a pre-activation that will be overwritten is copied. ``activations`` are
    the result of ``stage_activations``. Yields a function to call after the pass. It maps the stages to their
    pre-activations, (B, C, H, W) each.
    """
    activations = tuple(activations)
    calls: dict[str, dict[int, bool]] = {}
    for activation in filter(None, activations):
        calls.setdefault(activation.module, {})[activation.call] = activation.overwritten
    captured: dict[tuple[str, int], Tensor] = {}

    def capture(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        counter = itertools.count()

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            index = next(counter)
            if index in calls[name]:
                captured[name, index] = inputs[0].clone() if calls[name][index] else inputs[0]

        return hook

    def preacts(stages: list[Tensor]) -> list[Tensor]:
        return [
            stage if activation is None else _preact(network, activation, captured)
            for activation, stage in zip(activations, stages, strict=True)
        ]

    with ExitStack() as hooks:
        for name in calls:
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(capture(name)))
        yield preacts


@contextmanager
def record_norms(network: nn.Module) -> Iterator[dict[Node, _BatchNorm]]:
    """Records the batch norm of each batch-norm node in the graphs of the forward passes that run inside."""
    norms: dict[Node, _BatchNorm] = {}

    def record(norm: nn.Module, _: Any, output: Tensor) -> None:
        # timm's batch norms may contain the activation that follows them.
        node = output.grad_fn
        while node is not None and "BatchNorm" not in node.name():
            node = node.next_functions[0][0] if node.next_functions else None
        if node is not None and isinstance(norm, _BatchNorm):
            norms[node] = norm

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                hooks.enter_context(module.register_forward_hook(record))
        yield norms


def norm_scale_shift(preact: Tensor, norms: Mapping[Node, _BatchNorm]) -> tuple[Tensor, Tensor] | None:
    """Returns scale and shift, (C,) each, of the batch norm whose output a pre-activation is.

    For a sum it is the batch norm at the end of the longer path through the network, i.e. of the residual branch and
    not of the shortcut, whether that is the block's input or a convolution of it. For the product of a map and a gate
    that is computed from it (squeeze and excitation) it is the map's batch norm.

    Args:
        preact: (B, C, H, W), with its graph.
        norms: Result of ``record_norms``.

    Returns:
        None if there is no such batch norm, e.g. at a convolution, a concatenation, or several equally long branches.
    """
    node = _norm_node(preact.grad_fn, norms)
    if node is None or norms[node].num_features != preact.shape[1]:
        return None
    norm = norms[node]
    scale = preact.new_ones(preact.shape[1]) if norm.weight is None else norm.weight
    shift = preact.new_zeros(preact.shape[1]) if norm.bias is None else norm.bias
    return scale, shift


def _norm_node(node: Node | None, norms: Mapping[Node, _BatchNorm]) -> Node | None:
    depths = _depths(node)
    while node is not None and node not in norms:
        # Weights, e.g. a layer's scale, are not on a path to the input.
        inputs = [source for source, _ in node.next_functions if source and "AccumulateGrad" not in source.name()]
        name = node.name().partition("Backward")[0]
        if name == "Add" and len(inputs) == 2 and depths[inputs[0]] != depths[inputs[1]]:
            node = max(inputs, key=depths.__getitem__)
        elif name == "Mul" and len(inputs) == 2:
            node = min(inputs, key=depths.__getitem__)
        elif name in ("Clone", "MaxPool2DWithIndices", "MaxPool2D"):
            node = inputs[0]
        else:
            return None
    return node


def _find_activations(network: nn.Module, image: tuple[int, ...]) -> tuple[ActivationCall | None, ...]:
    with dry_run(network, image) as black:
        calls, pools, stages = _record_calls(network, black)
    call_of_node: dict[Node | None, _Call] = {call.node: call for call in calls}
    activations: list[ActivationCall | None] = []
    for index, stage in enumerate(stages):
        pool, node = pools.get(stage.grad_fn, (None, stage.grad_fn))
        call = call_of_node.get(node)
        if call is not None:
            # Compared after the pass, because other modules than the activation may write to the input too.
            overwritten = call.input._version != call.version
            activations.append(ActivationCall(call.module, call.number, overwritten, pool))
        elif node is not None and node.name().partition("Backward")[0] in _FUNCTIONS:
            raise missing_output(network, "preacts", f"its stage {index} ends with an activation that is not a module")
        elif not _has(network, _BatchNorm) or _has(network, nn.LayerNorm):
            reason = f"no activation ends its stage {index}, and such a stage is its own pre-activation"
            condition = "only in convolutional networks with batch norms and no layer norms"
            raise missing_output(network, "preacts", f"{reason} {condition}")
        else:
            activations.append(None)
    return tuple(activations)


def _record_calls(
    network: nn.Module, images: Tensor
) -> tuple[list[_Call], dict[Node | None, tuple[str, Node | None]], list[Tensor]]:
    """Returns the calls of activations; name and input node of each max pooling, by its node; and the stages."""
    calls: list[_Call] = []
    pools: dict[Node | None, tuple[str, Node | None]] = {}
    names = {module: name for name, module in network.named_modules()}
    versions: dict[nn.Module, list[int]] = {}  # of the input of every call of an activation

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        versions.setdefault(module, []).append(inputs[0]._version)

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            number, version = len(versions[module]) - 1, versions[module][-1]
            calls.append(_Call(names[module], number, inputs[0], version, output.grad_fn))

    def after_pool(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            pools[output.grad_fn] = names[module], inputs[0].grad_fn

    with ExitStack() as hooks:
        for module in names:
            if any(base.__module__ in _ACTIVATIONS for base in type(module).__mro__):
                hooks.enter_context(module.register_forward_pre_hook(before))
                hooks.enter_context(module.register_forward_hook(after))
            elif isinstance(module, nn.MaxPool2d):
                hooks.enter_context(module.register_forward_hook(after_pool))
        _, stages = intermediates(network, images, "preacts")
    return calls, pools, stages


def _preact(network: nn.Module, activation: ActivationCall, captured: Mapping[tuple[str, int], Tensor]) -> Tensor:
    preact = captured.get((activation.module, activation.call))
    if preact is None:
        raise missing_output(network, "preacts", f"its {activation.module} does not run as it did in evaluation mode")
    if activation.pool is not None:
        preact = network.get_submodule(activation.pool)(preact)
    return preact


def _has(network: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in network.modules())


def _depths(end: Node | None) -> dict[Node, int]:
    """Returns the number of nodes on the longest path from each node to the network's input."""
    depths: dict[Node, int] = {}
    stack = [] if end is None else [end]
    while stack:
        node = stack[-1]
        inputs = [source for source, _ in node.next_functions if source is not None]
        missing = [source for source in inputs if source not in depths]
        if missing:
            stack += missing
        else:
            depths[node] = 1 + max((depths[source] for source in inputs), default=0)
            stack.pop()
    return depths
