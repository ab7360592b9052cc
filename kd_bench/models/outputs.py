"""Runs any network, ours or timm's, on a batch and returns the outputs that methods need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.models.preactivations import capture_preacts, norm_scale_shift, record_norms, stage_activations
from kd_bench.models.timm_interface import check_functions, dry_run, intermediates, last_feature_map, missing_output
from kd_bench.types import LOGITS, Output, Outputs, Shapes

#: Outputs of each pixel of the last feature map.
_MAPS_OF_CLASSIFIER: frozenset[Output] = frozenset({"features", "class_maps"})


def observe(model: nn.Module, images: Tensor, needs: frozenset[Output]) -> Outputs:
    """Runs one forward pass and returns the requested outputs. Logits and buffers are those of ``model(images)``.

    Args:
        model: A network with timm's interface. The pre-activations of a network with our ``forward_stages`` are those
            that it returns. Those of other networks are the inputs of the activations that end the stages; a stage
            without an activation, in a network of convolutions and batch norms, is its own pre-activation.
        images: (B, C, H, W).
        needs: Outputs to return beside the logits.

    Raises:
        UserError: If the network lacks an output.
    """
    if needs <= LOGITS:
        return Outputs(model(images))
    if "published_preacts" in needs:
        outputs = observe(model, images, needs - {"published_preacts"} | {"preacts"})
        published_form: Any = getattr(model, "published_preacts", tuple)
        return replace(outputs, preacts=published_form(outputs.preacts))
    if hasattr(model, "forward_stages"):
        return _observe_own(model, images, needs)
    return _observe_timm(model, images, needs)


def shapes(model: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> Shapes:
    """Returns the shapes, without the batch dimension, of the outputs of ``observe`` for one image.

    Runs the network in evaluation mode without gradients, which does not change it. ``image`` is the (C, H, W) of an
    image.

    Raises:
        UserError: If the network lacks an output, or cannot process images of this size.
    """
    if not hasattr(model, "forward_stages"):
        check_functions(model, needs)
    with dry_run(model, image) as black, torch.no_grad():
        if "class_maps" in needs:
            _check_classifier(model, _noise_like(black))
        outputs = observe(model, black, needs)
    of_pixels = (outputs.features, outputs.class_maps)
    features, class_maps = (None if maps is None else tuple(maps.shape[1:]) for maps in of_pixels)
    return Shapes(
        logits=tuple(outputs.logits.shape[1:]),
        stages=tuple(tuple(stage.shape[1:]) for stage in outputs.stages),
        preacts=tuple(tuple(preact.shape[1:]) for preact in outputs.preacts),
        pooled=None if outputs.pooled is None else tuple(outputs.pooled.shape[1:]),
        features=features,
        class_maps=class_maps,
    )


def average_classifier(model: nn.Module, image: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns weight, (K, D), and bias, (K,), of a linear classifier of the last feature map's average.

    Runs one forward pass, as ``shapes`` does. Both are copies on the CPU.

    Raises:
        UserError: If the network computes its logits in another way.
    """
    with dry_run(model, image) as black, torch.no_grad():
        _check_classifier(model, _noise_like(black))
    weight, bias = (tensor.detach().clone() for tensor in _classifier(model))
    # The estimate of costs builds networks on the device "meta", whose tensors cannot be copied to another one.
    return (weight, bias) if weight.is_meta else (weight.cpu(), bias.cpu())


def _noise_like(image: Tensor) -> Tensor:
    """Returns an image of noise with the shape, device and type of an image."""
    # "cpu", because the estimate of costs makes "meta" the default device.
    return torch.rand(image.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(image)


def _check_classifier(model: nn.Module, images: Tensor) -> None:
    """Raises UserError unless the classifier is linear and reads the average of the last feature map.

    Compares with what it reads, because the logits of a new classifier may be 0, or its bias alone.
    """
    inputs: list[Any] = []
    _classifier(model)
    classifier: nn.Module = model.get_classifier()  # type: ignore[operator]
    hook = classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        outputs = observe(model, images, _MAPS_OF_CLASSIFIER)
    finally:
        hook.remove()
    assert outputs.features is not None and outputs.class_maps is not None
    average, read = outputs.features.mean((2, 3)), inputs[0] if len(inputs) == 1 else None
    if read is None or read.shape != average.shape:  # the network uses the classifier's weights in another way
        average, read = outputs.class_maps.mean((2, 3)), outputs.logits
    if not average.is_meta and (average - read).abs().max() > 1e-3 * read.abs().max():
        raise missing_output(model, "class_maps", "its classifier does not read the average of its last feature map")


def _classifier(network: Any) -> tuple[Tensor, Tensor]:
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(classifier, nn.Linear):
        raise missing_output(network, "class_maps", "its classifier is not a single linear layer")
    bias = classifier.bias
    return classifier.weight, classifier.weight.new_zeros(len(classifier.weight)) if bias is None else bias


def preact_norms(model: nn.Module, image: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor] | None, ...]:
    """Returns the current scale and shift of the batch norm behind each pre-activation.

    Runs one forward pass, as ``shapes`` does. For a pre-activation that is a sum it is the batch norm at the end of the
    residual branch.

    Returns:
        One entry per pre-activation of ``observe``: copies of scale and shift, (C,) each; None if the pre-activation is
        not the output of a single batch norm, e.g. that of a convolution.

    Raises:
        UserError: If the network lacks pre-activations, or cannot process images of this size.
    """
    own_norms: Any = getattr(model, "preact_norms", None)
    if own_norms is not None:
        norms = own_norms()
    else:
        with dry_run(model, image) as black, record_norms(model) as norm_of_node:
            preacts = observe(model, black, frozenset({"preacts"})).preacts
        norms = [norm_scale_shift(preact, norm_of_node) for preact in preacts]
    return tuple(None if norm is None else (norm[0].detach().clone(), norm[1].detach().clone()) for norm in norms)


def _observe_own(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    features, stages, preacts = network.forward_stages(images, preacts="preacts" in needs)
    if "preacts" in needs and not preacts:
        raise missing_output(network, "preacts", "its forward_stages returns none")
    pooled = network.forward_head(features, pre_logits=True)
    last_map, class_maps = _maps_of_classifier(network, features, needs)
    return Outputs(
        logits=network.get_classifier()(pooled),
        stages=tuple(stages) if "stages" in needs else (),
        preacts=tuple(preacts),
        pooled=pooled if "pooled" in needs else None,
        features=last_map,
        class_maps=class_maps,
    )


def _observe_timm(network: Any, images: Tensor, needs: frozenset[Output]) -> Outputs:
    stages: list[Tensor] = []
    preacts: list[Tensor] = []
    if "preacts" in needs:
        activations = stage_activations(network, tuple(images.shape[1:]))
        with capture_preacts(network, activations) as captured:
            features, stages = intermediates(network, images, "preacts")
        preacts = captured(stages)
    elif "stages" in needs:
        features, stages = intermediates(network, images, "stages")
    else:
        features = _timm_method(network, "forward_features", needs)(images)
    _timm_method(network, "forward_head", needs)
    logits, pooled = _run_head(network, features) if "pooled" in needs else (network.forward_head(features), None)
    shown = tuple(stages) if "stages" in needs else ()
    return Outputs(logits, shown, tuple(preacts), pooled, *_maps_of_classifier(network, features, needs))


def _maps_of_classifier(
    network: nn.Module, features: Tensor, needs: frozenset[Output]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the last feature map and the class maps, each None unless it is needed."""
    if needs.isdisjoint(_MAPS_OF_CLASSIFIER):
        return None, None
    features = last_feature_map(network, features)
    class_maps = None
    if "class_maps" in needs:
        weight, bias = _classifier(network)
        if weight.shape[1] != features.shape[1]:
            raise missing_output(network, "class_maps", "its classifier does not read its last feature map")
        class_maps = F.conv2d(features, weight[:, :, None, None], bias)
    return features if "features" in needs else None, class_maps


def _timm_method(network: Any, name: str, needs: frozenset[Output]) -> Callable[..., Tensor]:
    """Returns a method of timm's interface, or raises the error for a network without it."""
    if not hasattr(network, name):
        outputs: tuple[Output, ...] = ("stages", "preacts", "pooled", "features", "class_maps")
        output = next(output for output in outputs if output in needs)
        raise missing_output(network, output, f"it has no {name}, a function of timm's networks")
    method: Callable[..., Tensor] = getattr(network, name)
    return method


def _run_head(network: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits and pooled embedding, from one run of the head if it has a single classifier.

    The embedding is the classifier's input, because some of timm's heads have layers between ``pre_logits`` and the
    classifier, and a second run of the head would draw dropout and update batch norms again.
    """
    inputs: list[Tensor] = []
    classifier = network.get_classifier()
    if isinstance(classifier, nn.Module):  # networks made for distillation have a pair of classifiers, not a module
        hook = classifier.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            logits = network.forward_head(features)
        finally:
            hook.remove()
    else:
        logits = network.forward_head(features)
    pooled = _vectors(inputs[0]) if len(inputs) == 1 else None
    if pooled is None:
        pooled = _vectors(network.forward_head(features, pre_logits=True))
    if pooled is None:
        raise missing_output(network, "pooled", "its head does not pool to one vector per image")
    return logits, pooled


def _vectors(pooled: Tensor) -> Tensor | None:
    if pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        return pooled.flatten(1)
    return pooled if pooled.ndim == 2 else None
