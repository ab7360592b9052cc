"""Upper limits of settings, far above what anybody trains with, so that a slip of the finger is refused at once.

The types of ``numbers`` have no such limits, because they are also those of methods' hyper-parameters.
"""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import Interval
from pydantic import AfterValidator

#: Positive, and no number whose square is infinite in float32.
Positive = Annotated[float, Interval(gt=0, le=1e9)]
NonNegative = Annotated[float, Interval(ge=0, le=1e9)]

Epochs = Annotated[int, Interval(ge=1, le=100_000)]
WarmupEpochs = Annotated[int, Interval(ge=0, le=100_000)]
#: Seeds of a recipe.
MAX_TRIALS = 10_000
Trials = Annotated[int, Interval(ge=1, le=MAX_TRIALS)]
BatchSize = Annotated[int, Interval(ge=2, le=2**20)]
#: Number of images of a set, or of classes.
Images = Annotated[int, Interval(ge=1, le=10**9)]
AtLeastTwoImages = Annotated[int, Interval(ge=2, le=10**9)]
#: Height and width of images in pixels.
ImageSize = Annotated[int, Interval(ge=8, le=4096)]
#: Pixels of an image's padding, or of a square in it.
Pixels = Annotated[int, Interval(ge=0, le=4096)]
PositivePixels = Annotated[int, Interval(ge=1, le=4096)]
#: Steps of an attack on an image.
AttackSteps = Annotated[int, Interval(ge=1, le=10_000)]
#: Operations on an image, or uses of it in an epoch.
Repeats = Annotated[int, Interval(ge=1, le=100)]
Magnitude = Annotated[int, Interval(ge=0, le=999)]
Bins = Annotated[int, Interval(ge=2, le=1_000)]

#: The largest number of characters of the name of a recipe, and of a row's label.
MAX_NAME = 100

#: Folders of OUT that are no recipe's.
_RESERVED = {
    "smoke": "smoke runs",
    "attacks": "attacks on files of weights",
    "evaluations": "evaluations of files of weights",
    "logs": "logs",
    "replays": "trainings that are repeated by kd-bench replay",
}

#: Names that Windows keeps for devices, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.DOTALL)


def _check_recipe_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"should have at most {MAX_NAME} characters, and has {len(name)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith("."):
        raise ValueError(
            "should be the name of a folder, made of letters A to Z, digits, dots, dashes and underscores, with a "
            "letter or digit first and no dot last; it is the name of the recipe's file unless the recipe has a name"
        )
    if name.casefold() in _RESERVED:
        raise ValueError(f"is the folder of {_RESERVED[name.casefold()]} in the results folder; choose another name")
    if _DEVICES.fullmatch(name):
        raise ValueError("is a device on Windows, where the results could not be copied to; choose another name")
    return name


def _check_label(label: str) -> str:
    if not label.strip() or not label.isprintable():
        raise ValueError("should be text that can be printed on one line")
    if len(label) > MAX_NAME:
        raise ValueError(f"should have at most {MAX_NAME} characters, and has {len(label)}")
    return label


#: Name of a recipe, and of the folder of its results.
RecipeName = Annotated[str, AfterValidator(_check_recipe_name)]
#: Label of a row of the table.
Label = Annotated[str, AfterValidator(_check_label)]
