"""Generated images beside those of a data set, mixed in every batch."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_bench.config.adversarial import Generated
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256


def load_generated(
    settings: Generated, data_dir: Path, splits: ArrayDataset, first_classes: bool
) -> tuple[Tensor, Tensor]:
    """Loads the generated images of a trial.

    Args:
        settings, data_dir: The file and its hash, and the folder of data sets.
        splits: The data set that the images are added to.
        first_classes: Whether the data set has only its first classes, so that images of others are left out.

    Returns:
        (M, 3, H, W) uint8 images and (M,) int64 labels.

    Raises:
        UserError: The file is missing, is not the trial's, or does not fit the data set.
    """
    file = data_dir / settings.path
    if not file.is_file():
        raise UserError(f"adversarial.generated: there is no file {file}")
    digest = sha256(file)
    if digest != settings.sha256:
        raise UserError(
            f"{file}: is not the file of this trial: its SHA-256 is {digest}, the trial says {settings.sha256}"
        )
    images, labels = _read_arrays(file)
    height, width = splits.image_shape[1:]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
        raise UserError(
            f"{file}: image should be (N, {height}, {width}, 3) of uint8, not {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{file}: label should be ({len(images)},) whole numbers, not {labels.shape} of {labels.dtype}")
    if first_classes:
        images, labels = images[labels < splits.num_classes], labels[labels < splits.num_classes]
    if not len(labels) or labels.min() < 0 or labels.max() >= splits.num_classes:
        raise UserError(f"{file}: label should have classes from 0 to {splits.num_classes - 1}, and one image at least")
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first), torch.from_numpy(labels.astype(np.int64))


def _read_arrays(file: Path) -> tuple[Any, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files") or not {"image", "label"} <= set(archive.files):
                raise UserError(f"{file}: should be an .npz with the arrays image and label")
            return archive["image"], archive["label"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as .npz: {error}") from None


class MixedLoader(InMemoryLoader):
    """Yields full batches with a fixed share of generated images, as many per epoch as the set has by itself.

    The set's images come in a new order each epoch. A batch has fewer of them than its size, so an epoch may not have
    all of them; if it needs more than there are, another order follows. Generated images are drawn with replacement. In
    a batch the set's images come first; in ``Batch.index`` the generated images are numbered after the set's.

    Args:
        images, labels: (N, 3, H, W) uint8 and (N,) int64, the set's.
        generated: (M, 3, H, W) uint8 and (M,) int64.
        share: Fraction of a batch that is generated, rounded down.
        **settings: As for ``InMemoryLoader``.

    Raises:
        ValueError: A batch would have no image of one of the two kinds.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, generated: tuple[Tensor, Tensor], share: float, **settings: Any
    ) -> None:
        all_images = torch.cat([images, generated[0]])
        super().__init__(all_images, torch.cat([labels, generated[1]]), shuffle=True, **settings)
        self._real_count = len(images)
        self._generated_per_batch = int(self.batch_size * share)
        if not 0 < self._generated_per_batch < self.batch_size:
            raise ValueError(
                f"a share of {share} of a batch of {self.batch_size} is {self._generated_per_batch} generated images"
            )

    def __len__(self) -> int:
        return math.ceil(self._real_count / self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        steps, per_batch = len(self), self.batch_size - self._generated_per_batch
        passes = math.ceil(steps * per_batch / self._real_count)
        generator = seeding.generator(self.seed, seeding.ORDER, epoch)
        orders = [torch.randperm(self._real_count, generator=generator) for _ in range(passes)]
        real = torch.cat(orders)[: steps * per_batch].view(steps, per_batch)
        generator = seeding.generator(self.seed, seeding.GENERATED, epoch)
        shape = steps, self._generated_per_batch
        generated = torch.randint(self._real_count, len(self.images), shape, generator=generator)
        return torch.cat([real, generated], dim=1).flatten()
