"""Folders of images, one per class, or shards of images: what the sets in this form have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.sources import _find_files
from kd_bench.data.sources._find_files import SplitFiles
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset, Pipeline
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Allocate, Decoded
    from kd_bench.data.file_dataset import FileDataset


@dataclass(frozen=True)
class SplitFolders:
    """The folders of both splits; each holds a folder per class."""

    description: str
    train: Path
    test: Path

    def __str__(self) -> str:
        return self.description

    @property
    def folder(self) -> Path:
        """The folder that holds the folders of the splits."""
        return self.train.parent

    def classes(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Returns the folders of the training and test images, by class. The splits must have the same classes."""
        train, test = map(_find_files.class_folders, (self.train, self.test))
        _find_files.check_same_classes(self.train, self.test, train, test)
        return train, test


@dataclass(frozen=True)
class ImageSplit:
    """The image files of one split."""

    fingerprint: object
    """Changes when the files change."""
    list_images: Callable[[], list[tuple[Path, int]]]
    """Lists the files and their labels; only called if they must be decoded."""


def find_shards(roots: Iterable[Path]) -> SplitFiles | None:
    """Returns the shards in the first of these folders that has any; None if there are none, or class folders first."""
    for root in roots:
        if (root / "train").is_dir() and _find_files.class_folders(root / "train"):
            return None
        if root.is_dir() and (shards := _find_files.find_shards(root)):
            return shards
    return None


def load(spec: DatasetSpec, dataset: Dataset, files: SplitFiles | SplitFolders) -> ArrayDataset:
    """Loads both splits, by class and file name; decoded once and then taken from the cache.

    The classes are the sorted names of their folders. Hidden files and files that are no images are left out.
    """
    if isinstance(files, SplitFiles):
        raise UserError(f"{files.folder}: has shards, which are read image by image; give the recipe a pipeline")
    train, test = files.classes()
    splits = class_split(files.train, train), class_split(files.test, test)
    return load_splits(spec, dataset, splits, tuple(train))


def list_files(spec: DatasetSpec, files: SplitFiles | SplitFolders, pipeline: Pipeline) -> FileDataset:
    """Lists the images of both splits in the order that ``load`` has, without decoding any."""
    from kd_bench.data.file_dataset import FileDataset, Files
    from kd_bench.data.sources import _shards

    if isinstance(files, SplitFiles):
        return _shards.list_files(spec, files, pipeline)
    splits = files.classes()
    train, test = (Files.from_folders(list(split.values()), map(_names, split.values())) for split in splits)
    return FileDataset(train, test, tuple(splits[0]), spec.mean, spec.std, pipeline)


def class_split(folder: Path, classes: dict[str, Path]) -> ImageSplit:
    """Returns the split of the images in the folders ``classes``, of which ``folder`` is the parent."""
    fingerprint = _find_files.folder_fingerprint([folder, *classes.values()])
    return ImageSplit(fingerprint, partial(_list_images, list(classes.values())))


def load_splits(
    spec: DatasetSpec,
    dataset: Dataset,
    splits: tuple[ImageSplit, ImageSplit],
    class_names: tuple[str, ...],
    native_size: int | None = None,
) -> ArrayDataset:
    """Decodes both splits, or takes them from the cache.

    Args:
        spec, dataset: The set, and the choice, resolved.
        splits: The training images and the test images.
        class_names: In the order of the labels.
        native_size: Height and width that every image must have, in pixels; None allows any.

    Raises:
        UserError: An image is damaged, or a class has none.
    """
    from kd_bench.data import decoded_cache
    from kd_bench.data.array_dataset import ArrayDataset

    size = dataset.size or spec.image_size
    train, test = (
        decoded_cache.load(
            f"{spec.name}-{size}-{name}",
            [split.fingerprint, class_names],
            partial(_decode, split, class_names, size, native_size),
        )
        for name, split in zip(("train", "test"), splits, strict=True)
    )
    return ArrayDataset.from_decoded(spec, train, test, class_names)


def require_class_folders(folder: Path) -> None:
    """Raises a UserError if there are no folders in ``folder``."""
    if not _find_files.class_folders(folder):
        raise UserError(f"{folder}: has no folders, one per class, with images")


def _list_images(folders: list[Path]) -> list[tuple[Path, int]]:
    return [(folder / name, label) for label, folder in enumerate(folders) for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    names = _find_files.image_names(folder)
    if not names:
        problem = f"{folder}: has no images ({', '.join(sorted(_find_files.SUFFIXES))}), so the class is empty"
        folders = list(_find_files.class_folders(folder))
        if folders:
            problem += (
                f"; it has folders ({', '.join(folders[:3])}), and images must lie directly in the class's folder"
            )
        raise UserError(problem)
    nested = [path for path in _find_files.class_folders(folder).values() if _find_files.image_names(path)]
    if nested:  # torchvision reads them; without a word they must not be left out
        raise UserError(f"{nested[0]}: has images, but lies in the folder of a class, where images are not looked for; "
                        f"move the images to {folder}, or the folder elsewhere")  # fmt: skip
    return names


def _decode(
    split: ImageSplit, class_names: tuple[str, ...], size: int, native_size: int | None, allocate: Allocate
) -> Decoded:
    import numpy as np

    from kd_bench.data.decoded_cache import Decoded
    from kd_bench.data.decoding import decode_all

    files = split.list_images()
    images = allocate((len(files), 3, size, size))
    read, describe = (lambda i: _find_files.read_bytes(files[i][0])), (lambda i: f"{files[i][0]}: the image")
    decode_all(images, read, describe, native_size)
    return Decoded(images, np.array([[label] for _, label in files], np.int64), (class_names,))
