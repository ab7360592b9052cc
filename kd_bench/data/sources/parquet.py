"""Parquet files of the user's own images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources._find_files import SplitFiles, find_parquet
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset

SPEC = DatasetSpec(
    name="parquet",
    title="Parquet files of images",
    image_size=224,
    crop=28,
    source="the folder named by path, with train*.parquet and test*.parquet or val*.parquet, of encoded images in "
    "a column img or image and labels in a column label, labels or fine_label, or the one named by labels",
    options=("path", "size", "labels"),
)


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> SplitFiles:
    """Returns the parquet files in the folder, or in the folder "data" in it."""
    folder = data_dir / expand_user(dataset.path or "")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; path must be absolute or below the data folder")
    if files := find_parquet((folder, folder / "data")):
        more = " and others" * (len(files.test) > 1)
        return replace(files, description=f"{files.description}, tested on {files.test[0].name}{more}")
    raise UserError(f"{folder}: has no train*.parquet, and neither has its folder data, if any")


def load(spec: DatasetSpec, dataset: Dataset, files: SplitFiles) -> ArrayDataset:
    """Loads both splits, see ``_parquet_reader.load``."""
    from kd_bench.data.sources import _parquet_reader

    return _parquet_reader.load(spec, dataset, files)
