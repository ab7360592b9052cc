"""Placeholders for missing images, so that a recipe can be estimated without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import registry as datasets
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset


def images_or_placeholders(
    dataset: Dataset, pipeline: Pipeline | None, data_dir: Path | None
) -> tuple[ArrayDataset | FileDataset, str]:
    """Opens a data set, or returns placeholders of the same number and shape if its images are missing.

    Returns:
        The images, and the reason for placeholders; empty if there are none.

    Raises:
        UserError: If the images are missing and their number is unknown.
    """
    data_dir = datasets.resolve_data_dir(data_dir)
    try:
        datasets.locate(dataset, data_dir)
    except UserError as error:
        spec = datasets.resolve_spec(dataset)
        classes, train, test = spec.full_size or (spec.num_classes, spec.train_size, spec.test_size)
        if classes is None or train is None or test is None:
            raise
        return _placeholder_images(dataset, pipeline, classes, train, test), str(error)
    return datasets.open_dataset(dataset, pipeline, data_dir), ""


def _placeholder_images(
    dataset: Dataset, pipeline: Pipeline | None, classes: int, train: int, test: int
) -> ArrayDataset | FileDataset:
    import numpy as np
    import torch

    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset, Files

    spec = datasets.resolve_spec(dataset)
    selected = dataset.classes or classes
    all_classes = spec.num_classes if dataset.classes is None else datasets.spec(dataset.name).num_classes
    fraction = selected / max(selected, all_classes or classes)
    sizes = [
        min(limit or size, round(size * fraction))
        for size, limit in ((train, dataset.train_images), (test, dataset.test_images))
    ]
    labels = [np.arange(size) * selected // size for size in sizes]
    names = tuple(map(str, range(selected)))
    if pipeline is not None:
        train_files, test_files = (Files((Path(),) * selected, np.zeros(len(split), "S1"), split) for split in labels)
        return FileDataset(train_files, test_files, names, spec.mean, spec.std, pipeline)
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.channels, spec.image_size, spec.image_size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    train_images, test_images = (image.expand(size, -1, -1, -1) for size in sizes)  # takes no memory
    train_labels, test_labels = map(torch.from_numpy, labels)
    return ArrayDataset(train_images, train_labels, test_images, test_labels, names, spec.mean, spec.std)
