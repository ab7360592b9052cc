"""Finding files: the parquet files of a set, its shards, and folders of images, one a class. Reads none of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import SPECS
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.dataset_spec import DatasetSpec

#: What the split that is tested on may be called; the first that is there counts.
TEST = ("test", "val", "valid", "validation")
#: Files with other suffixes are no images: torchvision's choice.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})

_SPLITS = ("train", *TEST)
_TAR = re.compile(rf"(?:.*[-_.])?({'|'.join(_SPLITS)})[-_.]?(\d+)\.tar")
_NUMBERED_TAR = re.compile(r"(?:.*\D)?(\d+)\.tar")
_SHARD = re.compile(r"-(\d+)-of-(\d+)")
_NAMES = {spec.name for spec in SPECS if "path" not in spec.takes}


@dataclass(frozen=True)
class Layout:
    """The files that were found."""

    kind: str
    """"parquet" or "torchvision files"."""
    folder: Path
    train: tuple[Path, ...]
    """What the training set is read from, in order."""
    test: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.kind} in {self.folder}"


@dataclass(frozen=True)
class Shards:
    """The shards of both splits, each in the order of their numbers."""

    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{len(self.train)} shards to train on and {len(self.test)} to test on in {self.folder}"


def parquet_folders(
    spec: DatasetSpec, data_dir: Path, *, inner: Sequence[str] = (), aliases: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Where the public hub's files of a set may have been put.

    The data folder itself may be the set's, unless it has the name of another.

    Args:
        spec: The set.
        data_dir: The data folder.
        inner: Folders that the hub has the files in, besides "data".
        aliases: Other names that the set's own folder may have.
    """
    folders = [
        named / below
        for named in (data_dir / spec.name, *(data_dir / alias for alias in aliases))
        for below in ("", spec.name, "data", *inner)
    ]
    return tuple(folders if data_dir.name in _NAMES - {spec.name} else [*folders, data_dir])


def parquet(folders: Iterable[Path]) -> Layout | None:
    """The files of both splits in the first of these folders that has any; None where none has.

    Raises:
        UserError: Some are missing.
    """
    for folder in folders:
        train = tuple(sorted(folder.glob("train*.parquet")))
        tests = ((split, tuple(sorted(folder.glob(f"{split}*.parquet")))) for split in TEST[:2])  # val* has valid* too
        split, test = next((found for found in tests if found[1]), ("test", ()))
        if train or test:
            _check_whole(folder, "train", train)
            _check_whole(folder, split, test)
            return Layout("parquet", folder, train, test)
    return None


def _check_whole(folder: Path, split: str, files: tuple[Path, ...]) -> None:
    """A download that stopped between two files must not become a smaller data set."""
    if not files:
        raise UserError(f"{folder}: has no {split}-*.parquet; get the missing files too")
    numbers = [(int(found[1]), int(found[2])) for file in files if (found := _SHARD.search(file.stem))]
    if not numbers:
        return
    count = numbers[0][1]
    if sorted(numbers) != [(number, count) for number in range(count)] or len(numbers) != len(files):
        there = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: the files {there} are not the {count} parts of one {split} split; get it again")


def shards(folder: Path) -> Shards | None:
    """The shards of a WebDataset in a folder; None where there are none.

    They say their split and number, ``train-000000.tar`` and ``val-000000.tar`` or, as timm's copy of ImageNet on the
    public hub has them, ``imagenet1k-train-0000.tar`` and ``imagenet1k-validation-00.tar``; or they lie in a folder a
    split, ``train/0.tar``.

    Raises:
        UserError: A split or a shard is missing.
    """
    splits: dict[str, dict[int, Path]] = {}
    for file in _tars(folder):
        if name := _TAR.fullmatch(file.name):
            splits.setdefault(name[1], {})[int(name[2])] = file
    if not splits:
        for split in _SPLITS:
            numbered = ((file, _NUMBERED_TAR.fullmatch(file.name)) for file in _tars(folder / split))
            if found := {int(name[1]): file for file, name in numbered if name}:
                splits[split] = found
    if not splits:
        return None
    test = next((split for split in TEST if split in splits), None)
    if "train" not in splits or test is None:
        there, lacking = ("train", " or ".join(TEST)) if "train" in splits else (str(test), "train")
        raise UserError(f"{folder}: has shards of {there}, but none of {lacking}; get the missing files too")
    for split in ("train", test):
        _check_numbers(folder, splits[split])
    _check_announced(folder, [file for split in ("train", test) for file in splits[split].values()])
    train, tests = (tuple(file for _, file in sorted(splits[split].items())) for split in ("train", test))
    return Shards(folder, train, tests)


def _tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if not file.name.startswith("."))


def _check_numbers(folder: Path, numbers: dict[int, Path]) -> None:
    """A download that stopped between two shards must not become a smaller data set."""
    first, last = min(numbers), max(numbers)
    missing = sorted(set(range(min(first, 1), last + 1)) - set(numbers))
    if missing:
        example = numbers[last].name
        raise UserError(f"{folder}: shard {missing[0]} is missing of those up to {example}; get the missing files too")


def _check_announced(folder: Path, files: list[Path]) -> None:
    """timm's copies say in a file which shards there are, which tells of those that are missing at the end."""
    place = folder / "_info.json"
    try:
        splits = json.loads(place.read_bytes())["splits"]
        announced = {split: list(one["filenames"]) for split, one in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # there is none, or one of another kind
    there = {file.name for file in files}
    for split, names in announced.items():
        missing = [name for name in names if isinstance(name, str) and name not in there]
        if missing and len(missing) < len(names):
            raise UserError(f"{folder}: {missing[0]} is missing, a shard of {split} by {place.name}; get it too")


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders in ``folder`` that are not hidden, by name, sorted.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return {name: folder / name for name in sorted(found)}


def images(folder: Path) -> list[Path]:
    """The images right in ``folder`` that are not hidden, sorted by name; told from other files by their suffix.

    Raises:
        UserError: It cannot be read.
    """
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """The names alone of ``images``, for folders with a million of them.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and is_image(entry.name) and entry.is_file()
            ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    _, dot, end = name.rpartition(".")
    return (dot + end).lower() in SUFFIXES


def read(path: Path) -> bytes:
    """What is in a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def check_same_classes(train: Path, test: Path, train_classes: Iterable[str], test_classes: Iterable[str]) -> None:
    """Both splits of a set must name the same classes, and more than one.

    Raises:
        UserError: Names a class that is in one only.
    """
    here, there = set(train_classes), set(test_classes)
    for has, lacks, only in ((train, test, here - there), (test, train, there - here)):
        if only:
            raise UserError(f"{lacks}: has no class {min(only)!r}, which {has} has; both must have the same classes")
    if len(here) < 2:
        raise UserError(f"{train}: has only one class, {min(here)!r}; there must be two or more")


def facts(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells that folders have changed, for the cache: their names and times of change.

    A folder's times change when a file in it is added, removed, renamed or replaced by renaming, and when an archive is
    unpacked anew. A file that is written over in place is not noticed: that would take a look at each of maybe a
    million files at every start.
    """
    stats = ((path.name, path.stat()) for path in paths)
    return [(name, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
