"""Students in folders that ``kd-bench export card`` wrote and timm cannot build: those that keep layers of a method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kd_bench.config.trial import Trial
from kd_bench.config.validate import parse
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models.student_with_head import StudentWithHead
from kd_bench.training.build import load_network
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_json
from kd_bench.utils.regular_files import BadFile, read_json_object

WEIGHTS, SETTINGS = "model.safetensors", "student.json"

#: Limits of a file that may come from anybody, so that it does not fill the memory.
_LARGEST_SIDE, _MOST_CLASSES = 4096, 100_000


@dataclass(frozen=True)
class KeptLayer:
    """A layer that a method keeps in the student: its name in the weights, what it is, and its number of parameters."""

    name: str
    description: str
    parameters: int


def load_exported_student(folder: str | Path) -> nn.Module:
    """Returns the student of an exported folder in evaluation mode. It maps normalised images to logits.

    Neither the images nor the teacher's weights are needed. If ``student.json`` names a method or network as
    ``FILE.py:NAME``, that file is imported, which executes its code.

    Args:
        folder: A folder with ``student.json`` and ``model.safetensors``.

    Raises:
        UserError: If a file is missing or damaged, or the weights do not fit.
    """
    file = Path(folder) / SETTINGS
    try:
        content = read_json_object(file)
    except BadFile as error:
        raise UserError(f"{file}: {error}") from None
    if content is None:
        raise UserError(f"{file}: there is no such file; name a folder that kd-bench export card wrote")
    try:
        trial, (_, height, width), classes = content["trial"], content["image_shape"], content["num_classes"]
        size = int(height), int(width), int(classes)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{file}: lacks trial, image_shape or num_classes; export the student again") from None
    if not (min(size) >= 1 and max(size[:2]) <= _LARGEST_SIDE and size[2] <= _MOST_CLASSES):
        raise UserError(
            f"{file}: image_shape and num_classes are {size[0]} x {size[1]} pixels and {size[2]} classes; sides may be "
            f"from 1 to {_LARGEST_SIDE}, and classes from 1 to {_MOST_CLASSES}"
        )
    settings = parse(Trial, trial, f"{file}: trial")
    return build_exported_student(settings, (3, *size[:2]), size[2], Path(folder) / WEIGHTS)


def build_exported_student(
    trial: Trial, image_shape: tuple[int, ...], num_classes: int, weights: Path
) -> StudentWithHead:
    """Builds a trial's student with the layers that its method keeps, without its images, and loads its weights.

    Args:
        trial: The settings.
        image_shape: (3, H, W) of the training images.
        num_classes: K.
        weights: The file of the weights.

    Raises:
        UserError: If the network cannot be built, or the weights do not fit.
    """
    black = torch.zeros(1, *image_shape, dtype=torch.uint8).expand(num_classes, -1, -1, -1)
    labels, names = torch.arange(num_classes), tuple(map(str, range(num_classes)))
    channels = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    network, _ = load_network(trial, weights, ArrayDataset(black, labels, black, labels, names, *channels))
    if not isinstance(network, StudentWithHead):
        raise UserError(f"{weights}: has no layers of {trial.method.name}")
    return network


def write_settings(target: Path, trial: Trial, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Writes what ``load_exported_student`` reads besides the weights into an existing folder."""
    content = {"trial": trial.settings(), "image_shape": list(image_shape), "num_classes": num_classes}
    write_json(target / SETTINGS, content)


def kept_layers(head: nn.Module) -> Iterator[KeptLayer]:
    """Yields the layers with parameters of an inference head."""
    for name, layer in head.named_modules():
        count = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if count:
            # the faster convolutions are convolutions for whoever reads the card
            text = str(layer).replace("PointwiseConv2d", "Conv2d").replace("DepthwiseConv2d", "Conv2d")
            yield KeptLayer(f"head.{name}" if name else "head", text.splitlines()[0], count)
