"""The settings of images: the data set, its augmentation, and the input of networks."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from kd_bench.config.base import NonEmpty, Settings, added_field
from kd_bench.config.limits import (
    AtLeastTwoImages,
    Bins,
    Images,
    ImageSize,
    Magnitude,
    Pixels,
    Positive,
    PositivePixels,
    Repeats,
)
from kd_bench.config.numbers import Fraction, FractionBelowOne, PositiveFraction


class Dataset(Settings):
    """A data set, or a part of one.

    Attributes:
        name: Name of the set, see ``kd-bench list datasets``.
        labels: Kind of labels, if the set has several (fine or coarse of CIFAR-100, the columns of parquet files);
            None for the set's first.
        classes: Number of classes to use, from the first; None for all.
        path: Folder of a set without a name of its own (``folder``, ``parquet``), relative to the data folder or
            absolute.
        size: Height and width in pixels that images are resized to, if the set leaves a choice; None in a recipe for
            the set's default.
        train_images: Number of training images to use, evenly over the classes; None for all.
        test_images: Number of test images to use, evenly over the classes; None for all.
        holdout: Number of the training images that are held out: no network is trained on them, and students are
            evaluated on them after each epoch. They are drawn evenly over the classes, and are the same for all seeds.
        source: SHA-256 of the file of a user-defined set, which must not change then; None in a recipe for that of the
            present file, and for the sets that come with kd-bench.
    """

    name: str
    labels: str | None = None
    classes: AtLeastTwoImages | None = None
    path: str | None = added_field()
    size: ImageSize | None = added_field()
    train_images: AtLeastTwoImages | None = added_field()
    test_images: Images | None = added_field()
    holdout: AtLeastTwoImages | None = added_field()
    source: str | None = added_field()

    @property
    def title(self) -> str:
        """Name for tables: ``cifar100 (first 20 fine classes)``."""
        name = self.name if self.path is None else f"{self.name} {self.path}"
        parts = []
        if self.classes is not None:
            parts.append(f"first {self.classes} {self.labels + ' ' if self.labels else ''}classes")
        elif self.labels is not None:
            parts.append(f"{self.labels} labels")
        parts += [f"{self.train_images} training images"] if self.train_images is not None else []
        parts += [f"{self.test_images} test images"] if self.test_images is not None else []
        parts += [f"{self.holdout} held out"] if self.holdout is not None else []
        return f"{name} ({', '.join(parts)})" if parts else name


class RandAugment(Settings):
    """RandAugment (Cubuk et al., 2020) as torchvision draws it.

    Attributes:
        operations: Operations per image, one after the other.
        magnitude: Their strength, an index into ``bins`` strengths from none to the strongest.
        bins: Number of strengths.
    """

    operations: Repeats = 2
    magnitude: Magnitude = 9
    bins: Bins = 31

    @model_validator(mode="after")
    def _magnitude_is_a_bin(self) -> RandAugment:
        if self.magnitude >= self.bins:
            raise ValueError(f"magnitude must be below bins, which is {self.bins}")
        return self


class Augment(Settings):
    """The augmentation of training images in memory.

    Order: crop, flip, policy, user-defined augmentation, normalisation, cutout or erasing, mixing.

    Attributes:
        crop: Zero padding in pixels before the random crop back to the image's size; 0 for none. None in a recipe for
            the most that the set allows (4 for CIFAR).
        flip: Whether to mirror images with probability 1/2. None in a recipe for what the set allows.
        autoaugment: Whether to apply AutoAugment's CIFAR-10 policy (Cubuk et al., 2019).
        randaugment: Settings of RandAugment; None for none.
        cutout: Side in pixels of the square that is set to the mean colour (DeVries and Taylor, 2017); None for none.
        erase: Probability that a random rectangle is set to the mean colour (Zhong et al., 2020); None for none.
        mixup: Parameter of the Beta distribution of the weight of an image against another (Zhang et al., 2018); None
            for none.
        cutmix: Parameter of the Beta distribution of the area that is cut from another image (Yun et al., 2019); None
            for none. With ``mixup`` as well, each image gets one of the two.
        own: A user-defined augmentation, as ``path/to/file.py:name`` or by its name in an installed package; None for
            none.
        own_source: SHA-256 of the file of ``own``, which must not change then; None in a recipe for that of the present
            file.
    """

    crop: Pixels | None = None
    flip: bool | None = None
    autoaugment: bool = added_field(False)
    randaugment: RandAugment | None = added_field()
    cutout: PositivePixels | None = added_field()
    erase: PositiveFraction | None = added_field()
    mixup: Positive | None = added_field()
    cutmix: Positive | None = added_field()
    own: NonEmpty | None = added_field()
    own_source: str | None = added_field()

    @model_validator(mode="after")
    def _one_policy(self) -> Augment:
        if self.autoaugment and self.randaugment:
            raise ValueError("autoaugment and randaugment exclude each other")
        return self


_ANY, _ABOVE_0 = r"\d+(\.\d+)?", r"[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*"
#: First word of timm's auto-augment strings: the keys that may follow it, between dashes, and patterns of their values.
#: Checked here because timm ignores unknown parts silently.
_POLICIES = {
    "rand": {
        "m": r"\d+",
        "n": r"[1-9]|1[0-4]",
        "p": _ANY,
        "mstd": _ANY,
        "mmax": r"[1-9]\d*",
        "inc": r"[01]",
        "t": r"weights|3a|3aw",
    },
    "augmix": {"m": r"\d+", "w": r"[1-9]\d*", "d": r"[1-9]\d*", "a": _ABOVE_0, "b": r"[01]", "mstd": _ANY},
    **{name: {"mstd": _ANY} for name in ("original", "originalr", "v0", "v0r", "3a")},
}


def _timm_policy(text: str) -> str:
    first, *rest = text.split("-")
    if first not in _POLICIES:
        raise ValueError(f"must begin with one of {', '.join(_POLICIES)}, as in 'rand-m7-mstd0.5'")
    seen = set()
    for part in rest:
        key = next((key for key, value in _POLICIES[first].items() if re.fullmatch(f"{key}({value})", part)), None)
        if key is None or key in seen:
            keys = ", ".join(_POLICIES[first])
            problem = f"timm does not know {part!r}" if key is None else f"{part!r} sets {key!r} a second time"
            raise ValueError(f"{problem}; after {first!r} come, each once and with its value, {keys}")
        seen.add(key)
    return text


class Pipeline(Settings):
    """How image files become batches: each image is decoded and augmented by timm's transforms when it is needed.

    Order for training images: crop and resize, flip, policy, colours, normalisation, erasing, mixing. Test images are
    cropped at the centre. Names in brackets are those of timm's training script.

    Attributes:
        size: Height and width in pixels of training images.
        scale: Smallest and largest area of the crop as a fraction of the image's [scale].
        ratio: Smallest and largest aspect ratio of the crop, width by height [ratio].
        flip: Probability of mirroring [hflip].
        auto_augment: A policy in timm's notation, e.g. ``rand-m7-mstd0.5``; None for none [aa].
        color_jitter: Largest relative change of brightness, contrast and saturation; None for none [color-jitter]. timm
            combines it with no policy but those of three operations (``3a``).
        interpolation: Interpolation of training images; ``random`` picks one of the two for each image
            [train-interpolation].
        erase: Probability that a random rectangle is set to the mean colour; None for none [reprob].
        repeats: Number of times that each image of an epoch is in it, augmented differently each time. An epoch keeps
            its length, so that it has fewer different images [aug-repeats].
        mixup: Parameter of the Beta distribution of the weight of an image against another; None for none [mixup].
        cutmix: Parameter of the Beta distribution of the area that is cut from another image [cutmix]. A batch, or each
            micro-batch by itself, is mixed with itself in reverse order, with one draw.
        mixup_prob: Probability that a batch is mixed [mixup-prob].
        switch_prob: Probability of cutmix if both are set [mixup-switch-prob].
        smoothing: Label smoothing [smoothing].
        crop_pct: Side of the square that is tested on, divided by the shorter side of the image [crop-pct].
        test_size: Height and width in pixels of test images; None for ``size``.
        test_interpolation: Interpolation of test images.
        corrupt: ``refuse`` raises an error for an image that cannot be decoded. ``skip`` replaces it in training by the
            next image of its class, and leaves it out of the test.
    """

    size: ImageSize = 224
    scale: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    auto_augment: Annotated[str, AfterValidator(_timm_policy)] | None = None
    color_jitter: Positive | None = None
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    erase: PositiveFraction | None = None
    repeats: Repeats = 1
    mixup: Positive | None = None
    cutmix: Positive | None = None
    mixup_prob: PositiveFraction = 1.0
    switch_prob: Fraction = 0.5
    smoothing: FractionBelowOne = 0.0
    crop_pct: PositiveFraction = 0.875
    test_size: ImageSize | None = None
    test_interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    corrupt: Literal["refuse", "skip"] = "refuse"

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, by mixup or cutmix."""
        return self.mixup is not None or self.cutmix is not None

    @model_validator(mode="after")
    def _check_combination(self) -> Pipeline:
        for name, (smallest, largest) in (("scale", self.scale), ("ratio", self.ratio)):
            if smallest > largest:
                raise ValueError(f"{name} must have its smaller value first")
        if self.color_jitter is not None and self.auto_augment is not None and "3a" not in self.auto_augment:
            raise ValueError(f"color_jitter must be left out: timm has none with auto_augment {self.auto_augment!r}")
        return self


class Input(Settings):
    """The input of a network, to which the data set's images are converted.

    Attributes:
        size: Height and width in pixels; None for the data set's.
        normalise: ``dataset`` for the data set's mean and std, ``network`` for those in timm's configuration of the
            network.
    """

    size: PositivePixels | None = None
    normalise: Literal["dataset", "network"] = "dataset"
