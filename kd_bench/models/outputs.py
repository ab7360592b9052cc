"""What a network puts out for a batch, whatever the network: ours and timm's answer to the same functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models.preactivations import affine, keeping, noting_norms, sources
from kd_bench.models.timm_interface import cannot, dry_run, intermediates
from kd_bench.types import LOGITS, Output, Outputs, Shapes


def observe(model: nn.Module, images: Tensor, needs: frozenset[Output]) -> Outputs:
    """One forward pass that keeps what is asked for. Logits and buffers end up as after ``model(images)``.

    Args:
        model: A network with timm's interface. One with our ``forward_stages`` says itself what its pre-activations
            are; of others they are what the activations read that put out the stages, and the stages themselves where
            a network of convolutions and batch norms ends a stage without activation.
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
    with dry_run(model, image) as black, torch.no_grad():
        outputs = observe(model, black, needs)
    return Shapes(
        logits=tuple(outputs.logits.shape[1:]),
        stages=tuple(tuple(stage.shape[1:]) for stage in outputs.stages),
        preacts=tuple(tuple(preact.shape[1:]) for preact in outputs.preacts),
        pooled=None if outputs.pooled is None else tuple(outputs.pooled.shape[1:]),
    )


def preact_norms(model: nn.Module, image: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor] | None, ...]:
    """Scale and shift of the batch norm that puts out each pre-activation, as the network has them now.

    Found by one forward pass as by ``shapes``. A pre-activation that is a sum has the batch norm at the end of its
    residual branch.

    Args:
        model: As for ``observe``.
        image: (C, H, W) of the images.

    Returns:
        One entry for each of what ``observe`` gives as ``preacts``: copies of scale and shift, (C,) each; None where no
        single batch norm stands at the end of what computes the pre-activation, e.g. a bare convolution does.

    Raises:
        UserError: Where the network cannot give pre-activations, or cannot take images of this size.
    """
    norms: Any = getattr(model, "preact_norms", None)
    if norms is not None:
        found = norms()
    else:
        with dry_run(model, image) as black, noting_norms(model) as noted:
            preacts = observe(model, black, frozenset({"preacts"})).preacts
        found = [affine(preact, noted) for preact in preacts]
    return tuple(None if one is None else (one[0].detach().clone(), one[1].detach().clone()) for one in found)


def _observe_own(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    features, stages, preacts = network.forward_stages(images, preacts="preacts" in needs)
    if "preacts" in needs and not preacts:
        raise cannot(network, "preacts", "its forward_stages returns none")
    pooled = network.forward_head(features, pre_logits=True)
    return Outputs(
        logits=network.get_classifier()(pooled),
        stages=tuple(stages) if "stages" in needs else (),
        preacts=tuple(preacts),
        pooled=pooled if "pooled" in needs else None,
    )


def _observe_timm(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    stages: list[Tensor] = []
    preacts: list[Tensor] = []
    if "preacts" in needs:
        with keeping(network, sources(network, tuple(images.shape[1:]))) as kept:
            features, stages = intermediates(network, images, "preacts")
        preacts = kept(stages)
    elif "stages" in needs:
        features, stages = intermediates(network, images, "stages")
    else:
        features = _of_timm(network, "forward_features", needs)(images)
    _of_timm(network, "forward_head", needs)
    logits, pooled = _head(network, features) if "pooled" in needs else (network.forward_head(features), None)
    return Outputs(logits, tuple(stages) if "stages" in needs else (), tuple(preacts), pooled)


def _of_timm(network: Any, name: str, needs: frozenset[Output]) -> Callable[..., Tensor]:
    """A method that timm's networks have."""
    if not hasattr(network, name):
        wanted: Output = "stages" if "stages" in needs else "preacts" if "preacts" in needs else "pooled"
        raise cannot(network, wanted, f"it lacks {name}, which timm's networks have")
    found: Callable[..., Tensor] = getattr(network, name)
    return found


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
        raise cannot(network, "pooled", "its head does not pool to one vector an image")
    return logits, pooled


def _vectors(pooled: Tensor) -> Tensor | None:
    if pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        return pooled.flatten(1)
    return pooled if pooled.ndim == 2 else None
