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


def read(wanted: Generated, data_dir: Path, splits: ArrayDataset, first: bool) -> tuple[Tensor, Tensor]:
    """Reads the generated images that a trial asks for.

    Args:
        wanted: Which.
        data_dir: Folder of data sets.
        splits: The data set that they stand beside.
        first: Whether the data set has only its first classes, so that images of others are left out.

    Returns:
        (M, 3, H, W) uint8 images and (M,) int64 labels.

    Raises:
        UserError: Where the file is not there, is another than the trial's, or does not fit the data set.
    """
    file = data_dir / wanted.path
    if not file.is_file():
        raise UserError(f"adversarial.generated: there is no file {file}")
    found = sha256(file)
    if found != wanted.sha256:
        raise UserError(
            f"{file}: is not the file of this trial: its SHA-256 is {found}, the trial says {wanted.sha256}"
        )
    images, labels = _arrays(file)
    height, width = splits.image_shape[1:]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
        raise UserError(
            f"{file}: image should be (N, {height}, {width}, 3) of uint8, not {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{file}: label should be ({len(images)},) whole numbers, not {labels.shape} of {labels.dtype}")
    if first:
        images, labels = images[labels < splits.num_classes], labels[labels < splits.num_classes]
    if not len(labels) or labels.min() < 0 or labels.max() >= splits.num_classes:
        raise UserError(f"{file}: label should have classes from 0 to {splits.num_classes - 1}, and one image at least")
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pictures, torch.from_numpy(labels.astype(np.int64))


def _arrays(file: Path) -> tuple[Any, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files") or not {"image", "label"} <= set(archive.files):
                raise UserError(f"{file}: should be an .npz with the arrays image and label")
            return archive["image"], archive["label"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as .npz: {error}") from None


class MixedLoader(InMemoryLoader):
    """Batches of which a fixed part is generated; all of them whole, and as many an epoch as the set has by itself.

    The set's images come in a new order each epoch and, since a batch has fewer of them, not all of them in it; should
    an epoch need more than there are, another order follows. Generated images are drawn with replacement. In a batch
    the set's come first; ``Batch.index`` counts the generated ones on behind the set's.

    Args:
        images: (N, 3, H, W) uint8, the set's.
        labels: (N,) int64.
        generated: (M, 3, H, W) uint8 and (M,) int64.
        share: Of a batch that is generated, rounded down.
        **settings: As for ``InMemoryLoader``.

    Raises:
        ValueError: A batch would have no image of one of the two kinds.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, generated: tuple[Tensor, Tensor], share: float, **settings: Any
    ) -> None:
        pictures = torch.cat([images, generated[0]])
        super().__init__(pictures, torch.cat([labels, generated[1]]), shuffle=True, **settings)
        self._own = len(images)
        self._drawn = int(self.batch_size * share)
        if not 0 < self._drawn < self.batch_size:
            raise ValueError(f"of a batch of {self.batch_size}, {share} are {self._drawn} generated images")

    def __len__(self) -> int:
        return math.ceil(self._own / self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        steps, taken = len(self), self.batch_size - self._drawn
        draws = seeding.generator(self.seed, seeding.ORDER, epoch)
        orders = [torch.randperm(self._own, generator=draws) for _ in range(math.ceil(steps * taken / self._own))]
        own = torch.cat(orders)[: steps * taken].view(steps, taken)
        draws = seeding.generator(self.seed, seeding.GENERATED, epoch)
        other = torch.randint(self._own, len(self.images), (steps, self._drawn), generator=draws)
        return torch.cat([own, other], dim=1).flatten()
