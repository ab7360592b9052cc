"""Placeholders for missing images, so that a recipe can be estimated without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Returns placeholders of a data set with these numbers of classes and images, held-out images apart."""
    import numpy as np
    import torch

    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset, Files

    def labels(size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(size) * selected // max(1, size)

    def files(size: int) -> Files:
        return Files((Path(),) * selected, np.zeros(size, "S1"), labels(size))

    spec = datasets.resolve_spec(dataset)
    selected = dataset.classes or classes
    all_classes = spec.num_classes if dataset.classes is None else datasets.spec(dataset.name).num_classes
    fraction = selected / max(selected, all_classes or classes)
    sizes = [
        min(limit or size, round(size * fraction))
        for size, limit in ((train, dataset.train_images), (test, dataset.test_images))
    ]
    held_out = min(dataset.holdout or 0, sizes[0])
    train_size, test_size = sizes[0] - held_out, sizes[1]
    names = tuple(map(str, range(selected)))
    if pipeline is not None:
        undecoded = FileDataset(files(train_size), files(test_size), names, spec.mean, spec.std, pipeline)
        return replace(undecoded, holdout=replace(undecoded, test=files(held_out))) if held_out else undecoded
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.channels, spec.image_size, spec.image_size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def split(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return image.expand(size, -1, -1, -1), torch.from_numpy(labels(size))  # the images take no memory

    in_memory = ArrayDataset(*split(train_size), *split(test_size), names, spec.mean, spec.std)
    if not held_out:
        return in_memory
    images, image_labels = split(held_out)
    return replace(in_memory, holdout=replace(in_memory, test_images=images, test_labels=image_labels))
