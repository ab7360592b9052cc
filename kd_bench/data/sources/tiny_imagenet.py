"""Tiny-ImageNet: its authors' folders, the same with the validation images sorted by class, or the hub's parquet files.

The test images of the challenge have no published labels: what everybody tests on are its validation images. Class and
label are the sorted WordNet numbers in all three layouts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.sources import find_files, parquet
from kd_bench.data.sources import folder as folders
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec

#: The folder in the authors' archive.
BASE = "tiny-imagenet-200"
ARCHIVE = f"http://cs231n.stanford.edu/{BASE}.zip"
#: Of the archive.
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
HUB = "zh-plus/tiny-imagenet"

_ANNOTATIONS = "val_annotations.txt"


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images are.

    Raises:
        UserError: They are not there, or some files are missing.
    """
    if found := find_files.parquet(_parquet_folders(spec, data_dir)):
        return str(found)
    return f"folders of images in {_find(spec, data_dir)}"


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """Both splits, at 64 pixels or resized to 32; decoded once and then taken from the cache.

    Folders are read by class and file name, parquet files in their order.

    Raises:
        UserError: The files are not there, or damaged.
    """
    if found := find_files.parquet(_parquet_folders(spec, data_dir)):
        return parquet.load_files(spec, dataset, found, native=spec.image_size)
    root = _find(spec, data_dir)
    train, val = root / "train", root / "val"
    classes = find_files.class_folders(train)
    _check_classes(root, set(classes))
    sorted_val = {name: folder for name, folder in find_files.class_folders(val).items() if name != "images"}
    if sorted_val:
        find_files.check_same_classes(train, val, classes, sorted_val)
        test = folders.of_classes(val, _inner(sorted_val))
    else:
        for needed in (val / "images", val / _ANNOTATIONS):
            if not needed.exists():
                raise UserError(f"{needed}: is missing; remove {root} and unpack {ARCHIVE} again")
        source = find_files.facts([val / "images", val / _ANNOTATIONS])
        test = folders.FolderSplit(source, partial(_annotated, val, list(classes)))
    splits = folders.of_classes(train, _inner(classes)), test
    return folders.load_splits(spec, dataset, splits, tuple(classes), native=spec.image_size)


def download(spec: DatasetSpec, data_dir: Path) -> None:
    """Gets the authors' archive and unpacks it, unless the set is there.

    Raises:
        UserError: The folder cannot be written, or the set is there in part.
        RunFailed: It cannot be reached, or its checksum is not the published one.
    """
    from kd_bench.data.sources.archives import fetch_zip

    if find_files.parquet(_parquet_folders(spec, data_dir)):
        return
    if any(root.exists() for root in _roots(spec, data_dir)):
        _find(spec, data_dir)
        return
    fetch_zip(ARCHIVE, MD5, data_dir / spec.name, BASE)


def _parquet_folders(spec: DatasetSpec, data_dir: Path) -> tuple[Path, ...]:
    return find_files.parquet_folders(spec, data_dir, aliases=("tiny-imagenet",))


def _roots(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    return [data_dir / spec.name / BASE, data_dir / BASE, *([data_dir] if data_dir.name == BASE else [])]


def _find(spec: DatasetSpec, data_dir: Path) -> Path:
    roots = _roots(spec, data_dir)
    for root in roots:
        if root.is_dir():
            for name in ("train", "val"):
                if not (root / name).is_dir():
                    raise UserError(f"{root}: has no folder {name!r}; remove it and unpack {ARCHIVE} again")
            return root
    raise UserError(
        f"{spec.name} is not there: looked for train-*.parquet in "
        f"{', '.join(map(str, _parquet_folders(spec, data_dir)))} and for {' and '.join(map(str, roots))}; get it with "
        f"`kd-bench data fetch {spec.name}` or `hf download {HUB} --repo-type dataset --local-dir "
        f"{data_dir / spec.name}` or unpack {ARCHIVE} in {data_dir}, or say with --data or KD_BENCH_DATA where it is"
    )


def _check_classes(root: Path, classes: set[str]) -> None:
    """An archive that was unpacked in part must not become a smaller data set."""
    file = root / "wnids.txt"
    if file.is_file() and (odd := set(find_files.read(file).decode(errors="replace").split()) ^ classes):
        lacks, has = (file, root / "train") if min(odd) in classes else (root / "train", file)
        raise UserError(
            f"{lacks}: has no class {min(odd)!r}, which {has} has; remove {root} and unpack {ARCHIVE} again"
        )
    if len(classes) < 2:
        raise UserError(f"{root / 'train'}: has {len(classes)} classes; remove {root} and unpack {ARCHIVE} again")


def _inner(classes: dict[str, Path]) -> dict[str, Path]:
    """The folders that the images are in: the authors have one more below that of the class."""
    return {name: inner if (inner := folder / "images").is_dir() else folder for name, folder in classes.items()}


def _annotated(val: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The validation images as the authors have them: in one folder, the classes in a table."""
    file = val / _ANNOTATIONS
    labels = {name: label for label, name in enumerate(classes)}
    found: dict[str, int] = {}
    for number, line in enumerate(find_files.read(file).decode(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = labels.get(rest.partition("\t")[0])
        if label is None:
            raise UserError(f"{file}: line {number} is not an image's name, a tab and one of the classes of train")
        found[name] = label
    there = {path.name: path for path in find_files.images(val / "images")}
    if odd := there.keys() ^ found.keys():
        what = "is missing, but" if min(odd) in found else "is there, but not"
        raise UserError(f"{val / 'images' / min(odd)}: {what} in {_ANNOTATIONS}; unpack {ARCHIVE} again")
    images = [(there[name], label) for name, label in found.items()]
    return sorted(images, key=lambda image: (image[1], image[0]))
