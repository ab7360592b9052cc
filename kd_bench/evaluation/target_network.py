"""Builds the networks of evaluations from their files of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.student_with_head import has_head
from kd_bench.robustness.pixel_input import NormalisedNetwork
from kd_bench.training.build import add_head, keeps_layers, load_network
from kd_bench.training.loaders import Images
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError


class DeployedNetwork(NamedTuple):
    """A network as it is evaluated.

    Attributes:
        network: Maps images as ``view`` returns them to logits.
        view: Maps batches of ``images`` to the network's input.
        images: The data set, with the normalisation that the view expects.
        bare: The network without the normalisation that ``network`` may contain.
        input_shape: Channels, height and width of the input of ``bare``.
        folded: Whether its accuracy was measured with folded batch norms.
    """

    network: nn.Module
    view: nn.Module
    images: Images
    bare: nn.Module
    input_shape: tuple[int, ...]
    folded: bool


def load_deployed_network(target: EvaluationTarget, images: Images) -> DeployedNetwork:
    """Returns a target's network on the CPU, in evaluation mode.

    Raises:
        UserError: If the file does not hold this network's weights.
    """
    if target.is_trial:
        network, view = load_network(target.trained, target.weights, images)
        folded = isinstance(target.trained, PretrainedTeacher)  # as it was measured when it was read
        return DeployedNetwork(network, view, images, network, _input_shape(view, images), folded)
    pixel_network = load_pixel_network(target, images)
    shape = _input_shape(pixel_network.view, images)
    plain = replace(images, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if plain.holdout is not None:
        plain = replace(plain, holdout=replace(plain.holdout, mean=plain.mean, std=plain.std))  # type: ignore[arg-type]
    return DeployedNetwork(pixel_network, nn.Identity(), plain, pixel_network.network, shape, folded=False)


def load_pixel_network(target: EvaluationTarget, images: Images) -> NormalisedNetwork:
    """Returns a target's network on the CPU, in evaluation mode. It maps pixels from 0 to 1 to logits.

    Raises:
        UserError: If the file does not hold this network's weights, or has a method's layers beside them; or if the
            images should be normalised as for the network, which does not say how.
    """
    trained, image_size = target.trained, images.image_shape[-1]
    plugins.refuse_changes(trained.model, models.source_hash(trained.model), trained.model_source)
    network = models.create(trained.model, images.num_classes, trained.input.size or image_size)
    state = weights.read(target.weights, target.key).state
    if not target.is_trial and has_head(state):
        raise UserError(
            f"{target.weights}: holds layers of a method beside those of {trained.model}, which only the trial's "
            "settings describe; evaluate the trial's folder instead"
        )
    if isinstance(trained, Trial) and keeps_layers(trained, state):
        network = add_head(trained, images, network)
    weights.load_into(network, state, target.weights, trained.model)
    mean, std = images.mean, images.std
    if target.normalise == "none":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif target.normalise == "network":
        cfg = getattr(network, "pretrained_cfg", None) or {}
        if not {"mean", "std"} <= set(cfg):
            raise UserError(
                f"--normalise network: {trained.model} has no pretrained_cfg with mean and std, as networks of timm "
                "have; choose none or dataset"
            )
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    # A trial's network expects images as in training, where they have the data set's normalisation first.
    update = {} if target.normalise is None else {"normalise": "dataset"}
    view = InputTransform(network, trained.input.model_copy(update=update), image_size, images.mean, images.std)
    return NormalisedNetwork(network.eval(), mean, std, view)


def _input_shape(view: nn.Module, images: Images) -> tuple[int, ...]:
    """Returns channels, height and width of a network's input, from those of a test image."""
    shape = images.image_shape
    if not isinstance(images, ArrayDataset):
        size = images.pipeline.test_size or images.pipeline.size
        shape = (shape[0], size, size)
    return tuple(view(torch.zeros(1, *shape)).shape[1:])
