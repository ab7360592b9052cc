"""Any parquet files of images: those of a set that is on the public hub, or the user's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.sources import find_files
from kd_bench.data.sources.find_files import Layout
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Allocate, Decoded


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images are.

    Raises:
        UserError: They are not there, or some files are missing.
    """
    found = _find(dataset, data_dir)
    return f"{found}, tested on {found.test[0].name}{' and others' * (len(found.test) > 1)}"


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """Both splits, in the order of the files; decoded once and then taken from the cache.

    Raises:
        UserError: The files are not there, or damaged; or their labels do not make classes.
    """
    return load_files(spec, dataset, _find(dataset, data_dir), native=None)


def load_files(spec: DatasetSpec, dataset: Dataset, found: Layout, native: int | None) -> ArrayDataset:
    """The same for files that have been found.

    Args:
        spec: The set.
        dataset: Which of it, resolved.
        found: Its files.
        native: Height and width that every image must have, in pixels; None allows any.

    Raises:
        UserError: As ``load``.
    """
    from kd_bench.data import decoded_cache
    from kd_bench.data.array_dataset import ArrayDataset

    size = dataset.size or spec.image_size
    train, test = (
        decoded_cache.load(
            f"{spec.name}-{size}-{split}",
            [dataset.labels, decoded_cache.facts([found.train[0], *files])],
            partial(_decode, dataset, found, files, size, native),
        )
        for split, files in (("train", found.train), ("test", found.test))
    )
    names = train.class_names[0] or test.class_names[0]
    if test.class_names[0] and names != test.class_names[0]:
        raise UserError(f"{found.folder}: training and test files do not name the same classes")
    if not names:
        names = _numbered(found, train.labels[:, 0], test.labels[:, 0])
    for files, labels in ((found.train, train.labels), (found.test, test.labels)):
        if labels.max() >= len(names):
            raise UserError(f"{files[0]}: there is a label {labels.max()}, but only {len(names)} classes")
    return ArrayDataset.of(spec, train, test, names)


def _find(dataset: Dataset, data_dir: Path) -> Layout:
    folder = data_dir / Path(dataset.path or "").expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; path must be that of the parquet files, below the data's")
    if found := find_files.parquet((folder, folder / "data")):
        return found
    raise UserError(f"{folder}: has no train*.parquet, and neither has its folder data, if any")


def _decode(
    dataset: Dataset, found: Layout, files: tuple[Path, ...], size: int, native: int | None, allocate: Allocate
) -> Decoded:
    from kd_bench.data.sources import parquet_reader

    # Of the training files for both splits, lest they be of different kinds.
    column = parquet_reader.label_column(found.train[0], dataset.labels)
    return parquet_reader.read(files, {column: None}, allocate, size, native)


def _numbered(found: Layout, train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """The names of classes that are numbers only: they must leave none out, or they are not numbers of classes."""
    import numpy as np

    there = np.unique(train)
    gap = np.flatnonzero(there != np.arange(len(there)))
    if len(gap):
        raise UserError(
            f"{found.train[0]}: the labels must be 0, 1, 2 and so on, but no training image has {gap[0]}, and one "
            f"has {there[-1]}"
        )
    if test.max() >= len(there):
        raise UserError(f"{found.test[0]}: a test image has the label {test.max()}, and no training image has")
    return tuple(map(str, range(len(there))))
