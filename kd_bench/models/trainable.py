"""Finds the part of a network that is trained, and freezes the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

from torch import nn

from kd_bench.config.trial import Trainable
from kd_bench.models.timm_interface import dry_run
from kd_bench.utils.errors import UserError


def freeze(network: nn.Module, part: Trainable, image: tuple[int, ...], name: str) -> frozenset[nn.Module]:
    """Freezes a network except for a part of it, and returns the modules of this part.

    The parameters of all other modules require no gradient any more. Their mode is left to the caller.

    Args:
        network: The network.
        part: ``head``: the classifier. ``last_block``: the last block in timm's order of the layers
            (``group_matcher``), and every module that the network first calls behind it. ``all``: nothing is frozen.
        image: (C, H, W) of an image that the network can process.
        name: The network's name, for errors.

    Raises:
        UserError: If the network does not show its classifier or its last block.
    """
    if part == "all":
        return frozenset(network.modules())
    trained = _head(network, name) if part == "head" else _from_last_block(network, image, name)
    network.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
    return trained


def classifier_modules(network: nn.Module) -> tuple[nn.Module, ...]:
    """Returns the layers that compute the logits: most networks have one, timm's distilled transformers two."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    return tuple(layer for layer in layers if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()))


def _head(network: nn.Module, name: str) -> frozenset[nn.Module]:
    layers = classifier_modules(network)
    if not layers:
        raise UserError(
            f"model {name}: trainable: its classifier is not known, because it has no get_classifier(); train all of it"
        )
    return frozenset(module for layer in layers for module in layer.modules())


def _from_last_block(network: nn.Module, image: tuple[int, ...], name: str) -> frozenset[nn.Module]:
    head, block = _head(network, name), _last_block(network)
    order = _first_calls(network, image)
    if block is None or block not in order:
        raise UserError(
            f"model {name}: trainable: its last block is not known, because timm's group_matcher() does not name it; "
            "train the head or all of it"
        )
    begin = order[block]
    later = {module for module, position in order.items() if position >= begin}
    # A layer may use another one's weights without calling it, so what is inside is trained, too.
    trained = {inner for module in later for inner in module.modules() if order.get(inner, begin) >= begin}
    if not head <= trained:
        raise UserError(
            f"model {name}: trainable: its classifier does not come behind its last block; train the head or all of it"
        )
    return frozenset(trained)


def _last_block(network: nn.Module) -> nn.Module | None:
    """Returns the block with the highest numbers in timm's order of the layers; None if it is not known."""
    numbers: dict[str, tuple[int, ...]] = {}
    names = [name for name, _ in network.named_parameters()]
    for pattern in _block_patterns(network):
        for match in filter(None, (re.match(pattern, name) for name in names)):
            numbers[match[0].rstrip(".")] = tuple(int(group) for group in match.groups() if group and group.isdigit())
    modules = dict(network.named_modules())
    numbered = {name: number for name, number in numbers.items() if number and name in modules}
    return modules[max(numbered, key=lambda name: numbered[name])] if numbered else None


def _block_patterns(network: nn.Module) -> Iterator[str]:
    """Yields the patterns of the names of blocks' parameters, those that count the blocks by their groups."""
    if not hasattr(network, "group_matcher"):
        return
    groups = network.group_matcher(coarse=False)  # type: ignore[operator]
    *_, blocks = groups.values()
    if isinstance(blocks, str):
        yield blocks
        return
    yield from (pattern for pattern, order in blocks if order is None)


def _first_calls(network: nn.Module, image: tuple[int, ...]) -> dict[nn.Module, int]:
    """Returns the order in which a forward pass first calls the modules."""
    order: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object) -> None:
        order.setdefault(module, len(order))

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_pre_hook(note))
        with dry_run(network, image) as black:
            network(black)
    return order
