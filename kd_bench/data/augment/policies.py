"""AutoAugment and RandAugment of a whole batch at once, with torchvision's operations.

The operations are drawn for every image of the set; the images of a batch that have the same operation are then changed
together. Ranges and operations are those of ``torchvision.transforms.v2``: nearest neighbour, and black pixels where an
image was moved away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_bench.config.data import Augment, RandAugment
from kd_bench.utils import seeding

#: Number of strengths that AutoAugment's magnitudes index.
_AUTOAUGMENT_BINS = 10

#: AutoAugment's policy for CIFAR-10 (Cubuk et al., 2019, appendix): pairs of operation, probability and magnitude.
#: Magnitudes of operations that have no strength are 0.
CIFAR10_POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)

#: Largest strength of the operations that have a sign; for translations as a fraction of the image's side.
_SIGNED = {
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 150 / 331,
    "TranslateY": 150 / 331,
    "Rotate": 30.0,
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}

#: Operations that RandAugment draws from.
RANDAUGMENT_OPERATIONS = ("Identity", *_SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")


@dataclass(frozen=True)
class PolicyParams:
    """A policy's operations for every image of a set in one epoch, in the set's order.

    Kept on the CPU, where a batch is sorted by operation: reading the counts from a GPU would make the CPU wait.
    """

    steps: Tensor
    """(N, S) int64: indices in ``operations`` of the operations on each image, one after the other."""
    operations: tuple[tuple[str, float], ...]
    """Name and signed strength of every possible operation; the first does nothing."""


def draw_policy(augment: Augment, seed: int, epoch: int, size: int, height: int, width: int) -> PolicyParams | None:
    """Draws an epoch's operations for a set of ``size`` images of ``height`` x ``width``; None without a policy."""
    generator = seeding.generator(seed, seeding.POLICY, epoch)
    if augment.autoaugment:
        return _autoaugment(generator, size, height, width)
    if augment.randaugment:
        return _randaugment(generator, augment.randaugment, size, height, width)
    return None


def _autoaugment(generator: torch.Generator, size: int, height: int, width: int) -> PolicyParams:
    entries = [(name, magnitude) for pair in CIFAR10_POLICY for name, _, magnitude in pair]
    table, operations = _index_operations(entries, _AUTOAUGMENT_BINS, height, width)
    probability = torch.tensor([[probability for _, probability, _ in pair] for pair in CIFAR10_POLICY])

    pair = torch.randint(len(CIFAR10_POLICY), (size,), generator=generator)
    applied = torch.rand((size, 2), generator=generator) < probability[pair]
    negative = torch.randint(2, (size, 2), generator=generator)
    steps = table.view(-1, 2, 2)[pair[:, None], torch.arange(2), negative]
    return PolicyParams(torch.where(applied, steps, 0), operations)


def _randaugment(generator: torch.Generator, settings: RandAugment, size: int, height: int, width: int) -> PolicyParams:
    entries = [(name, settings.magnitude) for name in RANDAUGMENT_OPERATIONS]
    table, operations = _index_operations(entries, settings.bins, height, width)
    shape = (size, settings.operations)
    entry = torch.randint(len(table), shape, generator=generator)
    negative = torch.randint(2, shape, generator=generator)
    return PolicyParams(table[entry, negative], operations)


def _index_operations(
    entries: list[tuple[str, int]], bins: int, height: int, width: int
) -> tuple[Tensor, tuple[tuple[str, float], ...]]:
    """Returns a table (entries, 2), the index of each entry's positive and negative operation, and all operations."""
    numbers = {("Identity", 0.0): 0}
    table = [
        [numbers.setdefault(operation, len(numbers)) for operation in _both_signs(name, magnitude, bins, height, width)]
        for name, magnitude in entries
    ]
    return torch.tensor(table), tuple(numbers)


def _both_signs(name: str, magnitude: int, bins: int, height: int, width: int) -> list[tuple[str, float]]:
    """Returns the operation with its strength and with the negative strength; twice the same if it has no sign."""
    if name in _SIGNED:
        strongest = _SIGNED[name] * {"TranslateX": width, "TranslateY": height}.get(name, 1)
        strength = float(torch.linspace(0.0, strongest, bins)[magnitude])
        return [(name, strength), (name, -strength)]
    if name == "Posterize":
        # Number of bits left. Not Python's round: torchvision divides in single precision, which matters for halves.
        strength = float((8 - torch.arange(bins) / ((bins - 1) / 4)).round()[magnitude])
    elif name == "Solarize":
        strength = float(torch.linspace(1.0, 0.0, bins)[magnitude])
    else:
        strength = 0.0
    return [(name, strength)] * 2


def apply_policy(images: Tensor, steps: Tensor, operations: tuple[tuple[str, float], ...]) -> Tensor:
    """Applies to every image the operations drawn for it.

    Args:
        images: (B, 3, H, W) uint8.
        steps: (B, S) int64, on the CPU: the rows of ``PolicyParams.steps`` of these images.
        operations: ``PolicyParams.operations``.

    Returns:
        (B, 3, H, W) uint8.
    """
    for step in steps.unbind(1):
        order = step.argsort(stable=True)
        groups = images[order.to(images.device)].split(step.bincount(minlength=len(operations)).tolist())
        changed = [
            _operate(group, name, strength)
            for group, (name, strength) in zip(groups, operations, strict=True)
            if len(group)
        ]
        if changed:
            images = torch.cat(changed)[order.argsort().to(images.device)]
    return images


def _operate(images: Tensor, name: str, strength: float) -> Tensor:
    """Applies one operation to all images."""
    from torchvision.transforms.v2 import functional as F

    match name:
        case "Identity":
            return images
        case "ShearX" | "ShearY":
            # The strength is the slope, not the angle, and the upper left corner stays where it is.
            angle = math.degrees(math.atan(strength))
            shear = [angle, 0.0] if name == "ShearX" else [0.0, angle]
            return F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX" | "TranslateY":
            pixels = int(strength)
            translate = [pixels, 0] if name == "TranslateX" else [0, pixels]
            return F.affine(images, angle=0.0, translate=translate, scale=1.0, shear=[0.0, 0.0])
        case "Rotate":
            return F.rotate(images, angle=strength)
        case "Color":
            return F.adjust_saturation(images, 1.0 + strength)
        case "Brightness" | "Contrast" | "Sharpness":
            return getattr(F, f"adjust_{name.lower()}")(images, 1.0 + strength)
        case "Posterize":
            return F.posterize(images, bits=int(strength))
        case "Solarize":
            return F.solarize(images, threshold=255.0 * strength)
        case "AutoContrast" | "Equalize" | "Invert":
            return getattr(F, name.lower())(images)
    raise ValueError(f"no operation {name}")
