"""What is asked of any network behind timm's interface, and how it is said that one cannot answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.types import Output
from kd_bench.utils.errors import UserError


@contextmanager
def dry_run(network: nn.Module, image: tuple[int, ...]) -> Iterator[Tensor]:
    """Puts a network in evaluation mode, without autocast, and gives a black image for it: (1, C, H, W).

    Afterwards the network is as it was. Gradients are recorded, and the image takes part in them: what a network
    computes from it has a graph even where all weights are frozen.

    Args:
        network: Any network with parameters.
        image: (C, H, W).

    Raises:
        UserError: Where the network cannot take the image.
    """
    modes = {module: module.training for module in network.modules()}
    like = next(network.parameters())
    try:
        network.eval()
        autocast = torch.amp.is_autocast_available(like.device.type)  # not so for the "meta" device
        plain = torch.autocast(like.device.type, enabled=False) if autocast else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), plain:
            yield torch.zeros(1, *image, device=like.device, dtype=like.dtype, requires_grad=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = str(error).strip().splitlines()
        size = "x".join(map(str, image))
        raise UserError(
            f"model {_name(network)}: cannot take images of {size}{f' ({why[0]})' if why else ''}"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training


def intermediates(network: Any, images: Tensor, output: Output) -> tuple[Tensor, list[Tensor]]:
    """The final features, and the stages as timm's ``forward_intermediates`` gives them: (B, C, H, W) each.

    Args:
        network: A network with timm's interface.
        images: (B, C, H, W).
        output: What they are needed for, for the error.

    Raises:
        UserError: Where the network has no such stages.
    """
    if not hasattr(network, "forward_intermediates"):
        raise cannot(network, output, "it has no forward_intermediates")
    features, stages = network.forward_intermediates(images, output_fmt="NCHW")
    if not all(isinstance(stage, Tensor) and stage.ndim == 4 for stage in stages):
        raise cannot(network, output, "its intermediates are no (B, C, H, W) maps")
    return features, stages


def cannot(network: nn.Module, output: Output, why: str) -> UserError:
    """The error for a network that cannot give an output."""
    return UserError(f"model {_name(network)}: cannot give the output {output!r}: {why}")


def _name(network: nn.Module) -> str:
    return getattr(network, "pretrained_cfg", {}).get("architecture") or type(network).__name__
