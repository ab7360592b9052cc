"""The settings of images: which, what happens to them, how networks see them; and the base of all settings."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from kd_bench.config.base import Positive, PositiveInt, Settings, added_field


class Dataset(Settings):
    """Which images.

    Attributes:
        name: Name of the set, see ``kd-bench list datasets``.
        labels: Which labels, where the set has several (CIFAR-100: fine or coarse; the columns of parquet files); None
            takes the set's first.
        classes: Only the first so many classes; None takes all.
        path: Folder of a set that is not known by name (``folder``, ``parquet``), below the data folder or absolute.
        size: Height and width in pixels that images are brought to, where the set leaves a choice; a recipe's None
            takes the set's own.
        train_images: Only so many training images, evenly over the classes; None takes all.
        test_images: The same of the test set.
        source: SHA-256 of a plug-in's file, for which a recipe's None takes that of the file as it is; None for the
            sets that come with kd-bench.
    """

    name: str
    labels: str | None = None
    classes: Annotated[int, Field(ge=2)] | None = None
    path: str | None = added_field()
    size: Annotated[int, Field(ge=8)] | None = added_field()
    train_images: Annotated[int, Field(ge=2)] | None = added_field()
    test_images: PositiveInt | None = added_field()
    source: str | None = added_field()

    @property
    def title(self) -> str:
        """For people: ``cifar100 (first 20 fine classes)``."""
        of = self.name if self.path is None else f"{self.name} {self.path}"
        about = []
        if self.classes is not None:
            about.append(f"first {self.classes} {self.labels + ' ' if self.labels else ''}classes")
        elif self.labels is not None:
            about.append(f"{self.labels} labels")
        about += [f"{self.train_images} training images"] if self.train_images is not None else []
        about += [f"{self.test_images} test images"] if self.test_images is not None else []
        return f"{of} ({', '.join(about)})" if about else of


class RandAugment(Settings):
    """RandAugment (Cubuk et al., 2020) as torchvision draws it.

    Attributes:
        operations: Operations an image, one after the other.
        magnitude: Their strength, an index into ``bins`` strengths from none to the strongest.
        bins: How many strengths there are.
    """

    operations: PositiveInt = 2
    magnitude: Annotated[int, Field(ge=0)] = 9
    bins: Annotated[int, Field(ge=2)] = 31

    @model_validator(mode="after")
    def _magnitude_is_a_bin(self) -> RandAugment:
        if self.magnitude >= self.bins:
            raise ValueError(f"magnitude must be below bins, which is {self.bins}")
        return self


class Augment(Settings):
    """What happens to a training image, in this order.

    Crop, flip, policy, the user's own, normalisation, cutout or erasing, mixing.

    Attributes:
        crop: Zero padding in pixels before the random crop back to the image's size; 0 for none. A recipe's None takes
            what the set allows (4 for CIFAR).
        flip: Whether to mirror every other image. A recipe's None takes what the set allows.
        autoaugment: Whether to apply AutoAugment's CIFAR-10 policy (Cubuk et al., 2019).
        randaugment: RandAugment; None for none.
        cutout: Side in pixels of the square that is set to the mean colour (DeVries and Taylor, 2017); None for none.
        erase: Probability that a random rectangle is set to the mean colour (Zhong et al., 2020); None for none.
        mixup: Parameter of the Beta distribution that weighs an image against another (Zhang et al., 2018).
        cutmix: The same for the area that is cut from another image (Yun et al., 2019). With ``mixup`` as well, each
            image gets one of the two.
        own: An augmentation of the user's own, as ``path/to/file.py:name`` or by its name in an installed package (see
            ``kd_bench.data.augment.plugin``); None for none.
        own_source: SHA-256 of its file, for which a recipe's None takes that of the file as it is.
    """

    crop: Annotated[int, Field(ge=0)] | None = None
    flip: bool | None = None
    autoaugment: bool = added_field(False)
    randaugment: RandAugment | None = added_field()
    cutout: PositiveInt | None = added_field()
    erase: Annotated[float, Field(gt=0, le=1)] | None = added_field()
    mixup: Positive | None = added_field()
    cutmix: Positive | None = added_field()
    own: Annotated[str, Field(min_length=1)] | None = added_field()
    own_source: str | None = added_field()

    @model_validator(mode="after")
    def _one_policy(self) -> Augment:
        if self.autoaugment and self.randaugment:
            raise ValueError("autoaugment and randaugment exclude each other")
        return self


_ANY, _ABOVE_0 = r"\d+(\.\d+)?", r"[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*"
#: The first word of timm's auto-augment strings, and what may follow it, between dashes, with what values. timm leaves
#: out silently what it does not know.
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
            known = ", ".join(_POLICIES[first])
            fault = "timm does not know" if key is None else "it has twice what is"
            raise ValueError(f"{fault} {part!r}; after {first!r} come, each once and with its value, {known}")
        seen.add(key)
    return text


class Pipeline(Settings):
    """How files of images become batches: by timm's transforms, each image decoded and drawn for when it is needed.

    What happens to a training image, in this order: crop and resize, flip, policy, colours, normalisation, erasing,
    mixing. Of a test image the middle is taken. Names in brackets are those of timm's training script.

    Attributes:
        size: Height and width in pixels of training images.
        scale: Least and greatest area of the crop as a fraction of the image's [scale].
        ratio: Least and greatest width of the crop by its height [ratio].
        flip: Probability of mirroring [hflip].
        auto_augment: A policy as timm writes it, e.g. ``rand-m7-mstd0.5``; None for none [aa].
        color_jitter: How far brightness, contrast and saturation may change; None for not at all [color-jitter]. With a
            policy timm has none, except with one of three operations (``3a``).
        interpolation: With which training images are resized; ``random`` is one of the two [train-interpolation].
        erase: Probability that a random rectangle is set to the mean colour; None for none [reprob].
        repeats: Times that each image of an epoch is in it, differently each time; with more than one an epoch has no
            more images than before, and so only as many different ones as that leaves [aug-repeats].
        mixup: Parameter of the Beta distribution that weighs images against others; None for none [mixup].
        cutmix: The same for the area that is cut from others [cutmix]. A batch, or each micro-batch of its own, is
            mixed with itself in reverse order, by one draw.
        mixup_prob: Probability that a batch is mixed at all [mixup-prob].
        switch_prob: Probability of cutmix where there is mixup too [mixup-switch-prob].
        smoothing: What the labels give away to all classes alike [smoothing].
        crop_pct: Side of the square that is tested on by the shorter side of the image [crop-pct].
        test_size: Height and width in pixels of test images; None for ``size``.
        test_interpolation: With which test images are resized.
        corrupt: What to do with an image that cannot be decoded: ``refuse`` to go on, or ``skip`` it, which puts the
            next image of its class in its place in training, and leaves it out of the test.
    """

    size: Annotated[int, Field(ge=8)] = 224
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    auto_augment: Annotated[str, AfterValidator(_timm_policy)] | None = None
    color_jitter: Positive | None = None
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    erase: Annotated[float, Field(gt=0, le=1)] | None = None
    repeats: PositiveInt = 1
    mixup: Positive | None = None
    cutmix: Positive | None = None
    mixup_prob: Annotated[float, Field(gt=0, le=1)] = 1.0
    switch_prob: Annotated[float, Field(ge=0, le=1)] = 0.5
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    test_size: Annotated[int, Field(ge=8)] | None = None
    test_interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    corrupt: Literal["refuse", "skip"] = "refuse"

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup is not None or self.cutmix is not None

    @model_validator(mode="after")
    def _makes_sense(self) -> Pipeline:
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if least > most:
                raise ValueError(f"{name} must have its lesser value first")
        if self.color_jitter is not None and self.auto_augment is not None and "3a" not in self.auto_augment:
            raise ValueError(f"color_jitter must be left out: timm has none with auto_augment {self.auto_augment!r}")
        return self


class Input(Settings):
    """How a network sees the images, which come in the data set's size and normalisation.

    Attributes:
        size: Height and width in pixels; None for the data set's.
        normalise: ``dataset`` for the data set's mean and std, ``network`` for those that timm knows the network by.
    """

    size: PositiveInt | None = None
    normalise: Literal["dataset", "network"] = "dataset"
