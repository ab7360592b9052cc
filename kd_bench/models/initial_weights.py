"""Builds a network whose training starts from the weights of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models import registry, weights
from kd_bench.models.matching import classifier_names, find_weights, is_under
from kd_bench.models.pretrained import without_state
from kd_bench.utils.errors import UserError


def create_from_file(file: Path, model: str, num_classes: int, image_size: int, **kwargs: Any) -> nn.Module:
    """Builds a network with the weights of a file and a new classifier, drawn from torch's global generator.

    The file must hold all weights of the network but the classifier. timm adapts what depends on the size of the images
    (embedded positions), if that is not the size that the network has by default.

    Args:
        file: The weights, in any layout that ``weights.read`` reads.
        model: Name of the network, as returned by ``registry.resolve``.
        num_classes: Width of the new classifier.
        image_size: Height and width of the images.
        **kwargs: As for ``registry.create``.

    Raises:
        UserError: If the file does not hold the network's weights, or the network has no classifier that can be
            replaced.
    """
    state = weights.read(file).state
    with torch.random.fork_rng(devices=[]):  # the new classifier does not depend on the networks that are built here
        small = registry.create(model, 1)
        if not classifier_names(small):
            raise UserError(f"model {model}: its classifier cannot be replaced, because it has no get_classifier()")
        state = find_weights(small, state, file, model).state
        if registry.source_hash(model) is not None:
            return _create_plugin(file, state, model, num_classes, image_size, kwargs)
        native = registry.create(model, weights.num_classes(state, small) or 0)
    weights.load_into(native, state, file, model)
    # With 0 classes timm never loads a classifier, even if it has the right width.
    overlay = {"state_dict": native.state_dict(), "num_classes": 0}
    network = without_state(
        registry.create(model, num_classes, image_size, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    )
    _check_loaded(network, native.state_dict(), file, model)
    return network


def _create_plugin(
    file: Path, state: Mapping[str, Tensor], model: str, num_classes: int, image_size: int, kwargs: dict[str, Any]
) -> nn.Module:
    network = registry.create(model, num_classes, image_size, **kwargs)
    names = classifier_names(network)
    new = {key: value for key, value in network.state_dict().items() if is_under(names, key)}
    from_file = {key: value for key, value in state.items() if not is_under(names, key)}
    weights.load_into(network, from_file | new, file, model)
    return network


def _check_loaded(network: nn.Module, expected: Mapping[str, Tensor], file: Path, model: str) -> None:
    """Raises UserError if a weight outside of the classifier is not that of the file, because timm skips what it
    cannot use.
    """
    names = classifier_names(network)
    for key, value in network.state_dict().items():
        before = expected.get(key)
        adapted = before is not None and before.shape != value.shape
        if not is_under(names, key) and not adapted and (before is None or not torch.equal(before, value)):
            raise UserError(f"{file}: timm could not load {key!r} of {model} from it")
