"""Generated images beside those of a data set, mixed in every batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_bench.config.adversarial import Generated
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.generated_file import check_arrays, checksum, read_arrays
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import is_file


class GeneratedImages:
    """Generated images that are read when they are drawn, because tens of millions fit neither a memory nor a GPU.

    Args:
        images: (M, H, W, 3) uint8, in a file or in memory.
        labels: (M,) whole numbers.
        classes: K, if images of classes from K on are left out.
    """

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int | None = None) -> None:
        self._images = images
        self._rows = None if classes is None else np.flatnonzero(labels < classes)
        self.labels: Tensor = torch.from_numpy((labels if self._rows is None else labels[self._rows]).astype(np.int64))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def read(self, index: Tensor) -> Tensor:
        """Returns the images at (B,) positions: (B, 3, H, W) uint8 on the CPU."""
        rows = index.numpy() if self._rows is None else self._rows[index.numpy()]
        return torch.from_numpy(self._images[rows]).permute(0, 3, 1, 2)


def load_generated(settings: Generated, data_dir: Path, splits: ArrayDataset, first_classes: bool) -> GeneratedImages:
    """Opens the generated images of a trial.

    Args:
        settings, data_dir: The file and its hash, and the folder of data sets.
        splits: The data set that the images are added to.
        first_classes: Whether the data set has only its first classes, so that images of others are left out.

    Raises:
        UserError: The file is missing, is not the trial's, or does not fit the data set.
    """
    file = data_dir / settings.path
    if not is_file(file):
        raise UserError(f"adversarial.generated: there is no file {file}")
    digest = checksum(file)
    if digest != settings.sha256:
        raise UserError(
            f"{file}: is not the file of this trial: its SHA-256 is {digest}, the trial says {settings.sha256}"
        )
    check_arrays(file, splits.image_shape[1])
    generated = GeneratedImages(*read_arrays(file), splits.num_classes if first_classes else None)
    labels = generated.labels
    if not len(labels) or labels.min() < 0 or labels.max() >= splits.num_classes:
        raise UserError(f"{file}: label should have classes from 0 to {splits.num_classes - 1}, and one image at least")
    return generated


class MixedLoader(InMemoryLoader):
    """Yields full batches with a fixed share of generated images, as many per epoch as the set has by itself.

    The set's images come in a new order each epoch. A batch has fewer of them than its size, so an epoch may not have
    all of them; if it needs more than there are, another order follows. Generated images are drawn with replacement. In
    a batch the set's images come first; in ``Batch.index`` the generated images are numbered after the set's.

    Args:
        images, labels: (N, 3, H, W) uint8 and (N,) int64, the set's.
        generated: M images.
        share: Fraction of a batch that is generated, rounded down.
        **settings: As for ``InMemoryLoader``.

    Raises:
        ValueError: A batch would have no image of one of the two kinds.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, generated: GeneratedImages, share: float, **settings: Any
    ) -> None:
        super().__init__(images, labels, shuffle=True, **settings)
        self._real_count = len(images)
        self._generated = generated
        self._generated_per_batch = int(self.batch_size * share)
        if not 0 < self._generated_per_batch < self.batch_size:
            raise ValueError(
                f"a share of {share} of a batch of {self.batch_size} is {self._generated_per_batch} generated images"
            )
        self.labels = torch.cat([self.labels, generated.labels.to(self.device)])
        self.size = len(self.labels)

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
        generated = torch.randint(self._real_count, self.size, shape, generator=generator)
        return torch.cat([real, generated], dim=1).flatten()

    def _take(self, positions: Tensor, index: Tensor) -> Tensor:
        is_real = positions < self._real_count
        generated = self._generated.read(positions[~is_real] - self._real_count)
        on_device = is_real.to(self.device)
        images = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, device=self.device)
        images[on_device] = super()._take(positions[is_real], index[on_device])
        images[~on_device] = generated.to(self.device)
        return images
