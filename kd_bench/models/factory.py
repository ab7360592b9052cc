"""Builds networks by any name for notebooks and scripts; ``kd_bench.create_model``."""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_bench.models import pretrained as published
from kd_bench.models import registry
from kd_bench.utils.errors import UserError


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    dataset: str | None = None,
    image_size: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds a network: ours, timm's, or a user's.

    Args:
        name: As in recipes: "resnet20" or "cifar_resnet20", timm's name with or without a tag, "path/to/file.py:NAME",
            or a name that an installed package offers.
        num_classes: Width of the classifier; 0 for none. It must be given.
        pretrained: Whether to load published weights: those that the network's card names, downloaded once as by
            ``kd-bench teacher fetch``, or timm's own. A classifier for another number of classes starts anew.
        dataset: Data set of the card; needed only if cards for several data sets name weights.
        image_size: Height and width of the images, for networks that are built for one size (transformers).
        **kwargs: As for ``timm.create_model``, e.g. ``in_chans``, ``checkpoint_path``, ``features_only``.
            ``pretrained_cfg_overlay={"file": FILE}`` replaces the published weights by those of a file.

    Raises:
        UserError: If the name is unknown, an argument is missing, has another type or is not taken by the network, or
            no weights are known.
        RunFailed: If weights cannot be downloaded.
    """
    if not isinstance(name, str):
        raise UserError(f"create_model: name: should be the name of a network, e.g. 'resnet20' (it is {name!r:.60})")
    model = registry.resolve(name, "create_model")
    if num_classes is None:
        raise UserError(f"create_model: num_classes is missing, the number of classes: create_model({name!r}, 100)")
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
        raise UserError(f"create_model: num_classes: should be a whole number of at least 0 (it is {num_classes!r})")
    if dataset is not None and not pretrained:
        raise UserError(f"create_model: dataset={dataset!r} chooses weights, and goes only with pretrained=True")
    if not pretrained:
        return registry.create(model, num_classes, image_size, **kwargs)
    kwargs["pretrained"] = True
    if kwargs.keys() & {"pretrained_cfg", "pretrained_cfg_overlay"}:  # name the weights
        return registry.create(model, num_classes, image_size, **kwargs)
    overlay = published.load_overlay(model, dataset)
    if overlay is not None:
        network = registry.create(model, num_classes, image_size, pretrained_cfg_overlay=overlay, **kwargs)
        return published.without_state(network)
    if dataset is not None:
        raise UserError(f"model {model}: pretrained=True, but no weights of it for {dataset} are known")
    if model in registry.own_models() or registry.source_hash(model) is not None:
        return registry.create(model, num_classes, image_size, **kwargs)
    return published.from_timm(model, lambda: registry.create(model, num_classes, image_size, **kwargs))
