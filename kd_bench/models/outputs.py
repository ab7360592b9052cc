"""What a network puts out for a batch, whatever the network: ours and timm's answer to the same two functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.errors import UserError
from kd_bench.types import LOGITS, Output, Outputs, Shapes


def observe(model: nn.Module, images: Tensor, needs: frozenset[Output]) -> Outputs:
    """One forward pass that keeps what is asked for. Logits and buffers end up as after ``model(images)``.

    Args:
        model: A network with timm's interface; one with our ``forward_stages`` gives pre-activations too.
        images: (B, C, H, W).
        needs: What to give beside the logits.

    Raises:
        UserError: Where the network cannot give what is asked for.
    """
    if needs <= LOGITS:
        return Outputs(model(images))
    if hasattr(model, "forward_stages"):
        return _observe_own(model, images, needs)
    return _observe_timm(model, images, needs)


def shapes(model: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> Shapes:
    """The shapes, without the batch dimension, of what ``observe`` gives for one image.

    Found by one forward pass in evaluation mode without gradients, which changes nothing in the network.

    Args:
        model: As for ``observe``.
        image: (C, H, W) of the images.
        needs: As for ``observe``.

    Raises:
        UserError: Where the network cannot give what is asked for, or cannot take images of this size.
    """
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            outputs = observe(model, torch.zeros(1, *image, device=like.device, dtype=like.dtype), needs)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = str(error).strip().splitlines()
        size = "x".join(map(str, image))
        raise UserError(f"model {_name(model)}: cannot take images of {size}{f' ({why[0]})' if why else ''}") from None
    finally:
        for module, training in modes.items():
            module.training = training
    return Shapes(
        logits=tuple(outputs.logits.shape[1:]),
        stages=tuple(tuple(stage.shape[1:]) for stage in outputs.stages),
        preacts=tuple(tuple(preact.shape[1:]) for preact in outputs.preacts),
        pooled=None if outputs.pooled is None else tuple(outputs.pooled.shape[1:]),
    )


def _observe_own(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    features, stages, preacts = network.forward_stages(images, preacts="preacts" in needs)
    if "preacts" in needs and not preacts:
        raise _cannot(network, "preacts", "its forward_stages returns none")
    pooled = network.forward_head(features, pre_logits=True)
    return Outputs(
        logits=network.get_classifier()(pooled),
        stages=tuple(stages) if "stages" in needs else (),
        preacts=tuple(preacts),
        pooled=pooled if "pooled" in needs else None,
    )


def _observe_timm(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    if "preacts" in needs:
        raise _cannot(network, "preacts", "among those known here only the cifar_ networks can")
    stages: list[Tensor] = []
    if "stages" in needs:
        features, stages = _intermediates(network, images)
    else:
        features = network.forward_features(images)
    if "pooled" in needs:
        logits, pooled = _head(network, features)
        return Outputs(logits, tuple(stages), pooled=pooled)
    return Outputs(network.forward_head(features), tuple(stages))


def _intermediates(network: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    if not hasattr(network, "forward_intermediates"):
        raise _cannot(network, "stages", "it has no forward_intermediates")
    features, stages = network.forward_intermediates(images, output_fmt="NCHW")
    if not all(isinstance(stage, Tensor) and stage.ndim == 4 for stage in stages):
        raise _cannot(network, "stages", "its intermediates are no (B, C, H, W) maps")
    return features, stages


def _head(network: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the pooled embedding, from a single run of the head wherever the head has a single classifier.

    The embedding is taken where the classifier reads it: some of timm's heads do more after ``pre_logits`` than apply
    the classifier, and a second run of the head would draw dropout and update batch norms a second time.
    """
    read: list[Tensor] = []
    classifier = network.get_classifier()
    if isinstance(classifier, nn.Module):  # a pair, in networks that were made for distillation, is none
        hook = classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            logits = network.forward_head(features)
        finally:
            hook.remove()
    else:
        logits = network.forward_head(features)
    pooled = _vectors(read[0]) if len(read) == 1 else None
    if pooled is None:
        pooled = _vectors(network.forward_head(features, pre_logits=True))
    if pooled is None:
        raise _cannot(network, "pooled", "its head does not pool to one vector an image")
    return logits, pooled


def _vectors(pooled: Tensor) -> Tensor | None:
    if pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        return pooled.flatten(1)
    return pooled if pooled.ndim == 2 else None


def _cannot(network: nn.Module, output: Output, why: str) -> UserError:
    return UserError(f"model {_name(network)}: cannot give the output {output!r}: {why}")


def _name(network: nn.Module) -> str:
    return getattr(network, "pretrained_cfg", {}).get("architecture") or type(network).__name__
