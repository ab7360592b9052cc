"""Folders of images, a folder a class, or of shards with images: ImageNet, and any set of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.sources import find_files
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset, Pipeline
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Allocate, Decoded
    from kd_bench.data.file_dataset import FileDataset


@dataclass(frozen=True)
class FolderSplit:
    """Where the images of a split are."""

    source: object
    """What the cache knows them by."""
    images: Callable[[], list[tuple[Path, int]]]
    """Lists the files and their labels; only called when they are to be decoded."""


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images are.

    Raises:
        UserError: They are not there, or not in folders.
    """
    sharded = _shards(spec, dataset, data_dir)
    if sharded is not None:
        return str(sharded)
    train, test = _find(spec, dataset, data_dir)
    return f"folders of images in {train.parent}, tested on {test.name}"


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """Both splits, by class and file name; decoded once and then taken from the cache.

    The classes are the sorted names of their folders. Other files than images, and what is hidden, is left out.

    Raises:
        UserError: The images are not there or damaged, or the splits have not the same classes; or they are in shards.
    """
    sharded = _shards(spec, dataset, data_dir)
    if sharded is not None:
        raise UserError(f"{sharded.folder}: has shards, which are read image by image; give the recipe a pipeline")
    train, test, classes = _classes(spec, dataset, data_dir)
    splits = of_classes(train, classes[train]), of_classes(test, classes[test])
    return load_splits(spec, dataset, splits, tuple(classes[train]), native=None)


def listed(spec: DatasetSpec, dataset: Dataset, data_dir: Path, pipeline: Pipeline) -> FileDataset:
    """Both splits as ``load`` has them, in the same order, but only their names: nothing is decoded.

    Raises:
        UserError: The images are not there, or the splits have not the same classes.
    """
    from kd_bench.data.file_dataset import FileDataset, Files
    from kd_bench.data.sources import shards

    sharded = _shards(spec, dataset, data_dir)
    if sharded is not None:
        return shards.listed(spec, sharded, pipeline)
    train, test, classes = _classes(spec, dataset, data_dir)
    return FileDataset(
        train=Files.of(list(classes[train].values()), map(_names, classes[train].values())),
        test=Files.of(list(classes[test].values()), map(_names, classes[test].values())),
        class_names=tuple(classes[train]),
        mean=spec.mean,
        std=spec.std,
        pipeline=pipeline,
    )


def _classes(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> tuple[Path, Path, dict[Path, dict[str, Path]]]:
    """The folders of the two splits, and for each the folders in it by class."""
    train, test = _find(spec, dataset, data_dir)
    classes = {folder: find_files.class_folders(folder) for folder in (train, test)}
    find_files.check_same_classes(train, test, classes[train], classes[test])
    return train, test, classes


def of_classes(folder: Path, classes: dict[str, Path]) -> FolderSplit:
    """The split whose images are in these folders, by class, of which ``folder`` is the parent."""
    return FolderSplit(find_files.facts([folder, *classes.values()]), partial(_list, list(classes.values())))


def load_splits(
    spec: DatasetSpec,
    dataset: Dataset,
    splits: tuple[FolderSplit, FolderSplit],
    class_names: tuple[str, ...],
    native: int | None,
) -> ArrayDataset:
    """Decodes both splits, or takes them from the cache.

    Args:
        spec: The set.
        dataset: Which of it, resolved.
        splits: The training images and the test images.
        class_names: In the labels' order.
        native: Height and width that every image must have, in pixels; None allows any.

    Raises:
        UserError: An image is damaged, or a class has none.
    """
    from kd_bench.data import decoded_cache
    from kd_bench.data.array_dataset import ArrayDataset

    size = dataset.size or spec.image_size
    train, test = (
        decoded_cache.load(
            f"{spec.name}-{size}-{name}",
            [split.source, class_names],
            partial(_decode, split, class_names, size, native),
        )
        for name, split in zip(("train", "test"), splits, strict=True)
    )
    return ArrayDataset.of(spec, train, test, class_names)


def _shards(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> find_files.Shards | None:
    """The shards that the images are in; None where they are in folders, or not there."""
    if spec.name == "imagenet":
        roots = [*_imagenet_roots(spec, data_dir), data_dir / "imagenet-1k-wds"]
    else:
        roots = [data_dir / Path(dataset.path or "").expanduser()]
    for root in roots:
        if (root / "train").is_dir() and find_files.class_folders(root / "train"):
            return None
        if root.is_dir() and (found := find_files.shards(root)):
            return found
    return None


def _find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> tuple[Path, Path]:
    """The folders of the two splits."""
    if spec.name == "imagenet":
        return _imagenet(spec, data_dir)
    folder = data_dir / Path(dataset.path or "").expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; path must be that of the images, below the data's")
    if not (folder / "train").is_dir():
        raise UserError(f"{folder}: has neither a folder 'train', with a folder of images a class, nor shards")
    _need_classes(folder / "train")
    tests = [folder / name for name in find_files.TEST if (folder / name).is_dir()]
    if not tests:
        raise UserError(f"{folder}: has none of the folders {', '.join(find_files.TEST)}, to test on")
    for test in tests:
        if find_files.class_folders(test):  # a test folder whose labels were kept secret has none
            return folder / "train", test
    raise UserError(f"{tests[0]}: has no folders, one a class, so the labels of its images are not known")


def _imagenet_roots(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    """Where ImageNet may have been put."""
    named = data_dir / spec.name
    roots = [named, named / "ILSVRC" / "Data" / "CLS-LOC", data_dir / "ILSVRC2012"]
    return roots + ([data_dir] if data_dir.name in ("imagenet", "ILSVRC2012", "CLS-LOC") else [])


def _imagenet(spec: DatasetSpec, data_dir: Path) -> tuple[Path, Path]:
    roots = _imagenet_roots(spec, data_dir)
    for root in roots:
        train, test = root / "train", root / "val"
        if train.is_dir() or test.is_dir():
            for split in (train, test):
                if not split.is_dir():
                    raise UserError(f"{root}: has no folder {split.name!r}; unpack the images of ILSVRC 2012 there")
            _need_classes(train)
            if not find_files.class_folders(test):
                raise UserError(
                    f"{test}: its images are not sorted into folders, one a class; let torchvision.datasets.ImageNet("
                    f"{str(root)!r}, split='val') do it, with ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
                    "in that folder"
                )
            return train, test
    raise UserError(
        f"imagenet is not there: looked for train and val in {', '.join(map(str, roots))}; get it from "
        f"{spec.source.rpartition('; ')[2]}, "
        "or say with --data or KD_BENCH_DATA where it is"
    )


def _need_classes(folder: Path) -> None:
    if not find_files.class_folders(folder):
        raise UserError(f"{folder}: has no folders, one a class, with images")


def _list(folders: list[Path]) -> list[tuple[Path, int]]:
    return [(folder / name, label) for label, folder in enumerate(folders) for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    names = find_files.image_names(folder)
    if not names:
        raise UserError(f"{folder}: has no images ({', '.join(sorted(find_files.SUFFIXES))}), so the class is empty")
    return names


def _decode(
    split: FolderSplit, class_names: tuple[str, ...], size: int, native: int | None, allocate: Allocate
) -> Decoded:
    import numpy as np

    from kd_bench.data.decoded_cache import Decoded
    from kd_bench.data.decoding import Decoder

    found = split.images()
    images = allocate((len(found), 3, size, size))
    with Decoder(size, native) as decoder:
        decoder.fill(
            images, lambda number: find_files.read(found[number][0]), lambda number: f"{found[number][0]}: the image"
        )
    return Decoded(images, np.array([[label] for _, label in found], np.int64), (class_names,))
