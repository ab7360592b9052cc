"""The handwritten digits that come with scikit-learn: 1,797 real images that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.utils import seeding

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec

#: Few, so that a student alone stays well short of what a good teacher can tell it.
TRAIN_PER_CLASS = 20


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images are; they are always there."""
    return "files packaged with scikit-learn"


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """The digits as 3x32x32, 20 training images a class and all others for the test, both in scikit-learn's order.

    The 8x8 pixels of 0..16 become 0..255, each a block of 4x4: enlarging by repetition keeps exactly the 64 values that
    were measured, and, unlike an interpolation, gives the same bytes with every version of every library. The split is
    part of the data set: it depends on no trial's seed.
    """
    import torch
    from sklearn.datasets import load_digits

    from kd_bench.data.array_dataset import ArrayDataset

    digits = load_digits()
    target = torch.from_numpy(digits.target).long()
    pixels = (torch.from_numpy(digits.images).long() * 255 + 8) // 16
    scale = spec.image_size // pixels.shape[-1]
    large = pixels.to(torch.uint8).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    images = large[:, None].expand(-1, spec.channels, -1, -1).contiguous()

    training = torch.zeros(len(target), dtype=torch.bool)
    for label in range(len(digits.target_names)):
        members = (target == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=seeding.generator(0, seeding.SPLIT, step=label))
        training[members[order[:TRAIN_PER_CLASS]]] = True
    return ArrayDataset(
        train_images=images[training],
        train_labels=target[training],
        test_images=images[~training],
        test_labels=target[~training],
        class_names=tuple(str(name) for name in digits.target_names),
        mean=spec.mean,
        std=spec.std,
    )
