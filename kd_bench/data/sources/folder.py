"""A folder of the user's own images: a folder of images per class, or shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources import _find_files
from kd_bench.data.sources._find_files import SplitFiles
from kd_bench.data.sources._image_folders import SplitFolders, find_shards, list_files, load, require_class_folders
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset

__all__ = ["SPEC", "find", "list_files", "load"]

SPEC = DatasetSpec(
    name="folder",
    title="Folder of images",
    image_size=224,
    crop=28,
    source="the folder named by path, with a folder of images per class in train and in test, val, valid or "
    "validation, or with shards of a WebDataset, train-000000.tar and val-000000.tar",
    options=("path", "size"),
    streams=True,
)


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> SplitFiles | SplitFolders:
    """Returns the shards in the folder, else the folders of images."""
    folder = data_dir / expand_user(dataset.path or "")
    if shards := find_shards([folder]):
        return shards
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; path must be absolute or below the data folder")
    if not (folder / "train").is_dir():
        problem = f"{folder}: has neither a folder 'train', with a folder of images per class, nor shards"
        folders = list(_find_files.class_folders(folder))
        raise UserError(f"{problem}; it has the folders {', '.join(folders[:3])}" if folders else problem)
    require_class_folders(folder / "train")
    tests = [folder / name for name in _find_files.TEST if (folder / name).is_dir()]
    if not tests:
        raise UserError(f"{folder}: has none of the folders {', '.join(_find_files.TEST)}, to test on")
    for test in tests:
        if _find_files.class_folders(test):  # a test folder without published labels has none
            split_folders = SplitFolders(
                f"folders of images in {folder}, tested on {test.name}", folder / "train", test
            )
            split_folders.classes()  # so that different classes are an error before anything is trained
            return split_folders
    raise UserError(f"{tests[0]}: has no folders, one per class, so the labels of its images are not known")
