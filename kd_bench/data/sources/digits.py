"""The handwritten digits that come with scikit-learn: 1,797 real images that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.utils import seeding

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset

SPEC = DatasetSpec(
    name="digits",
    title="Handwritten digits of scikit-learn",
    num_classes=10,
    image_size=32,
    # Of the 200 training images.
    mean=(0.3048, 0.3048, 0.3048),
    std=(0.3752, 0.3752, 0.3752),
    crop=2,
    flip=False,
    train_size=200,
    test_size=1_597,
    digests=("918e8401df870eb0aae506d5b0312303",),
    source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part); "
    "comes with scikit-learn",
)

#: So few that a student alone stays well below what it can learn from a good teacher.
TRAIN_PER_CLASS = 20


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Describes the images, which are always there."""
    return "files packaged with scikit-learn"


def load(spec: DatasetSpec, dataset: Dataset, files: str) -> ArrayDataset:
    """Loads the digits as 3x32x32: 20 training images per class, the others for the test, in scikit-learn's order.

    The 8x8 pixels of 0..16 become 0..255, each a block of 4x4. Repetition keeps exactly the 64 measured values and,
    unlike an interpolation, gives the same bytes with every version of every library. The split depends on no trial's
    seed.
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
        of_class = (target == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=seeding.generator(0, seeding.SPLIT, step=label))
        training[of_class[order[:TRAIN_PER_CLASS]]] = True
    names = tuple(map(str, digits.target_names))
    train, test = (images[training], target[training]), (images[~training], target[~training])
    return ArrayDataset(*train, *test, names, spec.mean, spec.std)
