"""timm's transforms of one image and its mixing of a batch, with reproducible random numbers.

timm draws from the global generators of Python, NumPy and torch. They are seeded before each image and restored
afterwards, so that an augmented image depends neither on earlier draws nor on the process.
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
from kd_bench.data.decoding import decode_image
from kd_bench.utils import seeding

_IMAGE = f"{seeding.AUGMENT}/image"
_BATCH = f"{seeding.MIX}/batch"


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restores the states of the global generators at the end."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)


def seed_globals(seed: int, stream: str, epoch: int, step: int) -> None:
    """Seeds the global generators of Python, NumPy and torch's CPU, each with another number.

    Python and NumPy have the same kind of generator, which would draw the same from the same number.
    """
    random.seed(seeding.derive(seed, f"{stream}/python", epoch, step))
    np.random.seed(np.frombuffer(seeding.derive(seed, f"{stream}/numpy", epoch, step).to_bytes(8, "little"), "<u4"))
    # torch.manual_seed would also initialise the GPUs, which workers must not.
    torch.default_generator.manual_seed(seeding.derive(seed, f"{stream}/torch", epoch, step))


class TrainTransform:
    """Augments a training image up to normalisation, and draws the box to erase after that.

    Args:
        pipeline: The settings.
        mean: The data set's mean, the colour of the pixels where a policy moved the image away.
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
            use_prefetcher=True,  # uint8, not normalised
        )
        _allow_zero_bits(self._transform)
        self._erasing = None if pipeline.erase is None else RandomErasing(pipeline.erase, device="cpu")

    def __call__(self, encoded: bytes, epoch: int, index: int, repeat: int) -> tuple[Tensor, Tensor]:
        """Must be called inside ``preserve_rng_state``.

        Args:
            encoded: The file's content.
            epoch: From 0.
            index: Seeds the draws, with ``epoch`` and ``repeat``.
            repeat: Number of the image's repeat in the epoch, from 0.

        Returns:
            (3, size, size) uint8; and (4,) int64, the box to erase, for ``crop_flip.zero_boxes``.

        Raises:
            BadImage: It cannot be decoded.
        """
        decoded = decode_image(encoded)
        seed_globals(self.seed, f"{_IMAGE}/{repeat}", epoch, index)
        image, box = self._transform(decoded), torch.zeros(4, dtype=torch.int64)
        if self._erasing is not None:
            # timm draws the box while it erases. Erasing a mask shows the box; the image is erased on the device.
            mask = self._erasing(torch.ones(1, self.size, self.size, dtype=torch.uint8))[0] == 0
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(rows):
                box = torch.cat([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        return image, box


def _allow_zero_bits(transform: Compose) -> None:
    """Lets the policy's posterising reach zero bits, as timm intends; newer versions of Pillow refuse zero."""
    for step in transform.transforms:
        for operation in (*getattr(step, "ops", ()), *chain.from_iterable(getattr(step, "policy", ()))):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return auto_augment.posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)


class EvaluationTransform:
    """Resizes a test image and cuts out its middle."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.size = pipeline.test_size or pipeline.size
        self._transform = create_transform(
            self.size, interpolation=pipeline.test_interpolation, crop_pct=pipeline.crop_pct, use_prefetcher=True
        )

    def __call__(self, encoded: bytes, epoch: int, index: int, repeat: int) -> tuple[Tensor, Tensor]:
        """Returns the same as ``TrainTransform``; draws nothing, and the box is empty."""
        return self._transform(decode_image(encoded)), torch.zeros(4, dtype=torch.int64)


class TimmMixup:
    """timm's mixup and cutmix of K classes, with one draw per batch, and its label smoothing."""

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
        """Mixes the images in place, each with the image at the same distance from the batch's other end.

        Args:
            images: (B, 3, H, W), normalised, or a part of a batch that has both images of each pair.
            labels: (B,) int64.
            epoch: From 0.
            number: Seeds the draw, with ``epoch``.

        Returns:
            The labels, (B, K) float if they are mixed or smoothed.
        """
        if self._mixup:
            with preserve_rng_state():
                seed_globals(self.seed, _BATCH, epoch, number)
                return self._mixup(images, labels)[1]
        return mixup_target(labels, self.num_classes, smoothing=self.smoothing) if self.smoothing else labels
