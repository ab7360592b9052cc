"""timm's transforms of one image and its mixing of a batch, with every draw made by name.

timm draws from the global generators of Python, NumPy and torch. They are seeded by name before each image and put back
afterwards, so that what an image looks like depends neither on what was drawn before nor on the process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose

from kd_bench.config.data import Pipeline
from kd_bench.data.decoding import picture
from kd_bench.utils import seeding

_IMAGE = f"{seeding.AUGMENT}/image"
_BATCH = f"{seeding.MIX}/batch"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Puts the global generators back to what they were."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(torchs)


def seed_globals(seed: int, stream: str, epoch: int, step: int) -> None:
    """Seeds the global generators of Python, NumPy and torch's CPU.

    Each with a number of its own: Python's and NumPy's are the same generator, and from the same number would draw the
    same.
    """
    random.seed(seeding.derive(seed, f"{stream}/python", epoch, step))
    np.random.seed(np.frombuffer(seeding.derive(seed, f"{stream}/numpy", epoch, step).to_bytes(8, "little"), "<u4"))
    # torch.manual_seed would also reach for the GPUs, which workers must not.
    torch.default_generator.manual_seed(seeding.derive(seed, f"{stream}/torch", epoch, step))


class TrainTransform:
    """What happens to a training image up to normalisation, and where it is to be erased after that.

    Args:
        pipeline: The settings.
        mean: The data set's, which fills what a policy moves into the image.
        seed: The trial's seed.
    """

    def __init__(self, pipeline: Pipeline, mean: tuple[float, ...], seed: int) -> None:
        self.size = pipeline.size
        self.seed = seed
        self._transform = create_transform(
            pipeline.size,
            is_training=True,
            scale=pipeline.scale,
            ratio=pipeline.ratio,
            hflip=pipeline.flip,
            color_jitter=pipeline.color_jitter,
            auto_augment=pipeline.auto_augment,
            interpolation=pipeline.interpolation,
            mean=mean,
            use_prefetcher=True,  # that is, uint8 and not normalised
        )
        _keep_no_bits(self._transform)
        self._erasing = None if pipeline.erase is None else RandomErasing(pipeline.erase, device="cpu")

    def __call__(self, encoded: bytes, epoch: int, index: int, repeat: int) -> tuple[Tensor, Tensor]:
        """Must be called inside ``undisturbed``.

        Args:
            encoded: The file's content.
            epoch: From 0.
            index: By which the draws are known, with ``epoch`` and ``repeat``.
            repeat: Which of the image's appearances in the epoch it is, from 0.

        Returns:
            (3, size, size) uint8; and (4,) int64, the box to erase, as
            ``kd_bench.data.augment.crop_flip.blank`` takes it.

        Raises:
            BadImage: It cannot be decoded.
        """
        whole = picture(encoded)
        seed_globals(self.seed, f"{_IMAGE}/{repeat}", epoch, index)
        image, box = self._transform(whole), torch.zeros(4, dtype=torch.int64)
        if self._erasing is not None:
            # timm draws the box while it erases; here that is done on a mask, and to the image on the device.
            mask = self._erasing(torch.ones(1, self.size, self.size, dtype=torch.uint8))[0] == 0
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(rows):
                box = torch.cat([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        return image, box


def _keep_no_bits(transform: Compose) -> None:
    """Lets the policy's posterising go down to no bits at all, as timm means it; newer versions of Pillow refuse to."""
    for step in transform.transforms:
        for operation in (*getattr(step, "ops", ()), *chain.from_iterable(getattr(step, "policy", ()))):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **others: Any) -> Image.Image:
    return auto_augment.posterize(image, bits, **others) if bits else Image.new(image.mode, image.size)


class EvaluationTransform:
    """The middle of a test image.

    Args:
        pipeline: The settings.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.size = pipeline.test_size or pipeline.size
        self._transform = create_transform(
            self.size,
            interpolation=pipeline.test_interpolation,
            crop_pct=pipeline.crop_pct,
            use_prefetcher=True,
        )

    def __call__(self, encoded: bytes, epoch: int, index: int, repeat: int) -> tuple[Tensor, Tensor]:
        """As ``TrainTransform``, but nothing is drawn."""
        return self._transform(picture(encoded)), torch.zeros(4, dtype=torch.int64)


class Mixing:
    """timm's mixup and cutmix, by one draw a batch, and its smoothing of labels.

    Args:
        pipeline: The settings.
        num_classes: K.
        seed: The trial's seed.
    """

    def __init__(self, pipeline: Pipeline, num_classes: int, seed: int) -> None:
        self.smoothing = pipeline.smoothing
        self.num_classes = num_classes
        self.seed = seed
        self._mixup = pipeline.mixes and Mixup(
            mixup_alpha=pipeline.mixup or 0.0,
            cutmix_alpha=pipeline.cutmix or 0.0,
            prob=pipeline.mixup_prob,
            switch_prob=pipeline.switch_prob,
            label_smoothing=pipeline.smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, number: int) -> Tensor:
        """Mixes the images in place, each with the one at the same distance from the batch's other end.

        Args:
            images: (B, 3, H, W), normalised, or some of a batch together with their partners.
            labels: (B,) int64.
            epoch: From 0.
            number: By which the draw is known, with ``epoch``.

        Returns:
            The labels, (B, K) float where they are mixed or smoothed.
        """
        if self._mixup:
            with undisturbed():
                seed_globals(self.seed, _BATCH, epoch, number)
                return self._mixup(images, labels)[1]
        return mixup_target(labels, self.num_classes, smoothing=self.smoothing) if self.smoothing else labels
