"""Tiny-ImageNet: its authors' folders, the same with the validation images sorted by class, or the hub's parquet files.

The test images of the challenge have no published labels; the literature tests on the validation images. Class and
label are the sorted WordNet numbers in all three layouts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources import _find_files, _image_folders
from kd_bench.data.sources._find_files import SplitFiles, find_parquet
from kd_bench.data.sources._image_folders import SplitFolders
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset

#: The folder in the authors' archive.
BASE = "tiny-imagenet-200"
ARCHIVE = f"http://cs231n.stanford.edu/{BASE}.zip"
#: Of the archive.
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
HUB = "zh-plus/tiny-imagenet"

SPEC = DatasetSpec(
    name="tiny_imagenet",
    title="Tiny-ImageNet",
    num_classes=200,
    image_size=64,
    # As the published teachers have them. This std is the mean of the images' own; that of all pixels is 0.2770 0.2691
    # 0.2821.
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2302, 0.2265, 0.2262),
    crop=8,
    train_size=100_000,
    test_size=10_000,
    source=f"Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015; {ARCHIVE}",
    options=("size",),
    sizes=(32, 64),
    downloadable=True,
)

_ANNOTATIONS = "val_annotations.txt"


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> SplitFiles | SplitFolders:
    """Returns the hub's files, else the authors' folders."""
    return find_parquet(_parquet_folders(spec, data_dir)) or _find_folders(spec, data_dir)


def load(spec: DatasetSpec, dataset: Dataset, files: SplitFiles | SplitFolders) -> ArrayDataset:
    """Loads both splits, at 64 pixels or resized to 32; decoded once and then taken from the cache.

    Folders are read by class and file name, parquet files in their order.
    """
    if isinstance(files, SplitFiles):
        from kd_bench.data.sources import _parquet_reader

        return _parquet_reader.load(spec, dataset, files, native_size=spec.image_size)
    train, val, root = files.train, files.test, files.train.parent
    classes = _find_files.class_folders(train)
    _check_classes(root, set(classes))
    sorted_val = {name: folder for name, folder in _find_files.class_folders(val).items() if name != "images"}
    if sorted_val:
        _find_files.check_same_classes(train, val, classes, sorted_val)
        test = _image_folders.class_split(val, _inner(sorted_val))
    else:
        sources = [val / "images", val / _ANNOTATIONS]
        for source in sources:
            if not source.exists():
                raise UserError(f"{source}: is missing; remove {root} and unpack {ARCHIVE} again")
        test = _image_folders.ImageSplit(
            _find_files.folder_fingerprint(sources), partial(_annotated_images, val, list(classes))
        )
    splits = _image_folders.class_split(train, _inner(classes)), test
    return _image_folders.load_splits(spec, dataset, splits, tuple(classes), native_size=spec.image_size)


def download(spec: DatasetSpec, data_dir: Path) -> None:
    """Downloads the authors' archive and unpacks it, unless the set is there."""
    from kd_bench.data.sources._archives import fetch_zip

    if find_parquet(_parquet_folders(spec, data_dir)):
        return
    if any(root.exists() for root in _roots(spec, data_dir)):
        _find_folders(spec, data_dir)
        return
    fetch_zip(ARCHIVE, MD5, data_dir / spec.name, BASE)


def _parquet_folders(spec: DatasetSpec, data_dir: Path) -> tuple[Path, ...]:
    return _find_files.parquet_folders(spec, data_dir, aliases=("tiny-imagenet",))


def _roots(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    return _find_files.unpacked_folders(spec, data_dir, BASE)


def _find_folders(spec: DatasetSpec, data_dir: Path) -> SplitFolders:
    roots = _roots(spec, data_dir)
    for root in roots:
        if root.is_dir():
            for name in ("train", "val"):
                if not (root / name).is_dir():
                    raise UserError(f"{root}: has no folder {name!r}; remove it and unpack {ARCHIVE} again")
            return SplitFolders(f"folders of images in {root}", root / "train", root / "val")
    raise _find_files.not_found(spec, data_dir, _parquet_folders(spec, data_dir), roots, HUB, ARCHIVE)


def _check_classes(root: Path, classes: set[str]) -> None:
    """Raises an error if classes are missing: an archive unpacked in part must not become a smaller data set."""
    file = root / "wnids.txt"
    if file.is_file() and (differing := set(_find_files.read_bytes(file).decode(errors="replace").split()) ^ classes):
        first = min(differing)
        lacks, has = (file, root / "train") if first in classes else (root / "train", file)
        raise UserError(f"{lacks}: has no class {first!r}, which {has} has; remove {root} and unpack {ARCHIVE} again")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'}: has {len(classes)} classes; remove {root} and unpack {ARCHIVE} again")


def _inner(classes: dict[str, Path]) -> dict[str, Path]:
    """Returns the folders that hold the images: the authors have one more below that of the class."""
    return {name: inner if (inner := folder / "images").is_dir() else folder for name, folder in classes.items()}


def _annotated_images(val: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Lists the validation images in the authors' layout: all in one folder, their classes in a table."""
    file, folder = val / _ANNOTATIONS, val / "images"
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_find_files.read_bytes(file).decode(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = label_of_class.get(rest.partition("\t")[0])
        if label is None:
            raise UserError(f"{file}: line {number} is not an image's name, a tab and one of the classes of train")
        labels[name] = label
    if differing := set(_find_files.image_names(folder)) ^ labels.keys():
        first = min(differing)
        problem = "is missing, but" if first in labels else "is there, but not"
        raise UserError(f"{folder / first}: {problem} in {_ANNOTATIONS}; unpack {ARCHIVE} again")
    return [(folder / name, label) for name, label in sorted(labels.items(), key=lambda item: item[::-1])]
