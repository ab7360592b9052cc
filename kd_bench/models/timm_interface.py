"""Calls any network with timm's interface, and makes the errors for networks that lack an output."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.types import Output
from kd_bench.utils.errors import UserError, first_line

#: What ``forward_intermediates`` returns.
_RETURNED = "a pair of the last features and a list of the stages, (B, C, H, W) each"


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, the network and its submodules are in evaluation mode. Afterwards each has its former mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def dry_run(network: nn.Module, image: tuple[int, ...]) -> Iterator[Tensor]:
    """Puts a network in evaluation mode, without autocast, and yields a black image for it, (1, C, H, W).

    Afterwards the network's modes are restored. Gradients are recorded and the image requires one, so that outputs have
    a graph even if all weights are frozen.

    Args:
        network: Any network with parameters.
        image: (C, H, W) of the image.

    Raises:
        UserError: If the network cannot process the image.
    """
    like = next(network.parameters())
    try:
        has_autocast = torch.amp.is_autocast_available(like.device.type)  # the "meta" device has none
        no_autocast = torch.autocast(like.device.type, enabled=False) if has_autocast else nullcontext()
        with evaluation_mode(network), torch.inference_mode(False), torch.enable_grad(), no_autocast:
            yield torch.zeros(1, *image, device=like.device, dtype=like.dtype, requires_grad=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        size = "x".join(map(str, image))
        reason = f" ({first_line(error)})" if str(error).strip() else ""
        raise UserError(f"model {_name(network)}: cannot take images of {size}{reason}") from None


def intermediates(network: Any, images: Tensor, output: Output) -> tuple[Tensor, list[Tensor]]:
    """Returns the final features and the stages, (B, C, H, W) each, of timm's ``forward_intermediates``.

    Raises:
        UserError: If the network has no such stages; names the output that needs them.
    """
    if not hasattr(network, "forward_intermediates"):
        raise missing_output(network, output, "it has no forward_intermediates, a function of timm's networks")
    result = network.forward_intermediates(images, output_fmt="NCHW")
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    if not (is_pair and isinstance(result[0], Tensor) and isinstance(result[1], tuple | list)):
        raise missing_output(network, output, f"its forward_intermediates should return {_RETURNED}")
    features, stages = result
    if not all(isinstance(stage, Tensor) and stage.ndim == 4 for stage in stages):
        raise missing_output(network, output, "its intermediates are not (B, C, H, W) maps")
    return features, stages


def last_feature_map(network: nn.Module, features: Any) -> Tensor:
    """Returns what ``forward_features`` returns as a map, (B, D, H, W).

    Some of timm's networks have the channels last there, (B, H, W, D), and say so: Swin, MambaOut, Sequencer.

    Raises:
        UserError: If it is no map.
    """
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise missing_output(network, "features", "its last features are not a (B, C, H, W) map")
    return features.movedim(3, 1) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features


def check_functions(network: nn.Module, needs: frozenset[Output]) -> None:
    """Checks the functions of timm's interface that ``observe`` calls for these outputs, without running them.

    Raises:
        UserError: If one is missing, or does not take an argument that it is called with.
    """
    maps: tuple[Output, ...] = ("stages", "preacts")
    for output in maps:
        if output in needs:
            _check_function(network, "forward_intermediates", output, "output_fmt")
    others: tuple[Output, ...] = ("pooled", "features", "class_maps")
    for output in others:
        if output in needs and needs.isdisjoint(maps):
            _check_function(network, "forward_features", output)
    if "pooled" in needs:
        _check_function(network, "forward_head", "pooled")
        _check_function(network, "get_classifier", "pooled")
        classifier: Any = network.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Module):  # otherwise its input is the pooled embedding
            _check_function(network, "forward_head", "pooled", "pre_logits")


def _check_function(network: nn.Module, name: str, output: Output, argument: str | None = None) -> None:
    function = getattr(network, name, None)
    if not callable(function):
        raise missing_output(network, output, f"it has no {name}, a function of timm's networks")
    if argument is None:
        return
    with suppress(ValueError):  # not a function of Python
        parameters = inspect.signature(function).parameters
        if argument not in parameters and all(
            parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()
        ):
            raise missing_output(network, output, f"its {name} takes no argument {argument}, as those of timm do")


def missing_output(network: nn.Module, output: Output, reason: str) -> UserError:
    """Returns the error for a network that lacks an output."""
    return UserError(f"model {_name(network)}: has no output {output!r}: {reason}")


def _name(network: nn.Module) -> str:
    return getattr(network, "pretrained_cfg", {}).get("architecture") or type(network).__name__
