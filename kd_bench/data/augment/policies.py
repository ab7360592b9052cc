"""AutoAugment and RandAugment of a whole batch at once, with torchvision's operations.

The choices are drawn for every image of the set; of a batch, the images that a choice has in common are then changed
together. Ranges and operations are those of ``torchvision.transforms.v2``: nearest neighbour, and black where an image
was moved away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_bench.config.data import Augment, RandAugment
from kd_bench.utils import seeding

#: Strengths that AutoAugment's magnitudes count.
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

#: What RandAugment draws from.
RANDAUGMENT_OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)

#: The strongest of the operations that can go either way; for translations as a fraction of the image's side.
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

_IDENTITY = ("Identity", 0.0)


@dataclass(frozen=True)
class Choices:
    """What a policy does with every image of a set in an epoch, in the set's order.

    Kept on the CPU, where a batch is sorted by choice: asking a GPU how many images chose what would make it wait.
    """

    steps: Tensor
    """(N, S) int64: places in ``operations`` of what is done to each image, one after the other."""
    operations: tuple[tuple[str, float], ...]
    """Name and strength, with its sign, of every operation that can be chosen; the first does nothing."""


def draw(augment: Augment, seed: int, epoch: int, size: int, height: int, width: int) -> Choices | None:
    """An epoch's choices for a set of ``size`` images; None without a policy.

    Args:
        augment: Says which policy.
        seed: The trial's seed.
        epoch: From 0.
        size: N.
        height: Of the images, for translations.
        width: Of the images.
    """
    generator = seeding.generator(seed, seeding.POLICY, epoch)
    if augment.autoaugment:
        return _autoaugment(generator, size, height, width)
    if augment.randaugment:
        return _randaugment(generator, augment.randaugment, size, height, width)
    return None


def _autoaugment(generator: torch.Generator, size: int, height: int, width: int) -> Choices:
    numbers = {_IDENTITY: 0}
    rows = []
    for pair in CIFAR10_POLICY:
        both = [_either_way(name, magnitude, _AUTOAUGMENT_BINS, height, width) for name, _, magnitude in pair]
        rows.append([[numbers.setdefault(one, len(numbers)) for one in ways] for ways in both])
    table = torch.tensor(rows)
    probability = torch.tensor([[probability for _, probability, _ in pair] for pair in CIFAR10_POLICY])

    policy = torch.randint(len(table), (size,), generator=generator)
    applied = torch.rand((size, 2), generator=generator) < probability[policy]
    negative = torch.randint(2, (size, 2), generator=generator)
    steps = table[policy[:, None], torch.arange(2), negative]
    return Choices(torch.where(applied, steps, 0), tuple(numbers))


def _randaugment(generator: torch.Generator, settings: RandAugment, size: int, height: int, width: int) -> Choices:
    numbers = {_IDENTITY: 0}
    rows = []
    for name in RANDAUGMENT_OPERATIONS:
        ways = _either_way(name, settings.magnitude, settings.bins, height, width)
        rows.append([numbers.setdefault(one, len(numbers)) for one in ways])
    table = torch.tensor(rows)

    shape = (size, settings.operations)
    chosen = torch.randint(len(table), shape, generator=generator)
    negative = torch.randint(2, shape, generator=generator)
    return Choices(table[chosen, negative], tuple(numbers))


def _either_way(name: str, magnitude: int, bins: int, height: int, width: int) -> list[tuple[str, float]]:
    """The operation with its strength, and with the strength's sign changed where it has one."""
    if name in _SIGNED:
        strongest = _SIGNED[name] * {"TranslateX": width, "TranslateY": height}.get(name, 1)
        strength = float(torch.linspace(0.0, strongest, bins)[magnitude])
        return [(name, strength), (name, -strength)]
    if name == "Posterize":
        # Bits that are kept. Not Python's round: torchvision divides in single precision, and halves decide.
        strength = float((8 - torch.arange(bins) / ((bins - 1) / 4)).round()[magnitude])
    elif name == "Solarize":
        strength = float(torch.linspace(1.0, 0.0, bins)[magnitude])
    else:
        strength = 0.0
    return [(name, strength)] * 2


def apply(images: Tensor, steps: Tensor, operations: tuple[tuple[str, float], ...]) -> Tensor:
    """Does to every image what was chosen for it.

    Args:
        images: (B, 3, H, W) uint8.
        steps: (B, S) int64, on the CPU: the rows of ``Choices.steps`` that belong to these images.
        operations: As ``Choices.operations``.

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
    """One operation on images that all have it in common."""
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
        case "Brightness":
            return F.adjust_brightness(images, brightness_factor=1.0 + strength)
        case "Color":
            return F.adjust_saturation(images, saturation_factor=1.0 + strength)
        case "Contrast":
            return F.adjust_contrast(images, contrast_factor=1.0 + strength)
        case "Sharpness":
            return F.adjust_sharpness(images, sharpness_factor=1.0 + strength)
        case "Posterize":
            return F.posterize(images, bits=int(strength))
        case "Solarize":
            return F.solarize(images, threshold=255.0 * strength)
        case "AutoContrast":
            return F.autocontrast(images)
        case "Equalize":
            return F.equalize(images)
        case "Invert":
            return F.invert(images)
    raise ValueError(f"no operation {name}")
