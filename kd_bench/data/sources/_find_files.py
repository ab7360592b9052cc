"""Finds the files of a data set: parquet files, shards, and folders of images, one per class.

A folder or file that cannot be read, and a missing part of a set, is a UserError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data import sources
from kd_bench.data.fingerprint import Fingerprint, fingerprint
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.dataset_spec import DatasetSpec

#: Possible names of the test split; the first one present is used.
TEST = ("test", "val", "valid", "validation")
#: Suffixes of image files: torchvision's choice.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})

_SPLITS = ("train", *TEST)
_TAR = re.compile(rf"(?:.*[-_.])?({'|'.join(_SPLITS)})[-_.]?(\d+)\.tar")
_NUMBERED_TAR = re.compile(r"(?:.*\D)?(\d+)\.tar")
_PARQUET_PART = re.compile(r"-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class SplitFiles:
    """The files of both splits, each in its order."""

    description: str
    """For people, e.g. "parquet in /x/cifar100"."""
    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]

    def __str__(self) -> str:
        return self.description


def parquet_folders(
    spec: DatasetSpec, data_dir: Path, *, inner: Sequence[str] = (), aliases: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Returns the folders that may hold the public hub's files of a set.

    The data folder itself is one of them, unless it has the name of another set.

    Args:
        spec, data_dir: The set and the data folder.
        inner: Folders that the hub has the files in, besides "data".
        aliases: Other names of the set's own folder.
    """
    folders = [data_dir / name / below for name in (spec.name, *aliases) for below in ("", spec.name, "data", *inner)]
    named = {name for name, (other, _) in sources.built_in().items() if "path" not in other.options}
    return tuple(folders if data_dir.name in named - {spec.name} else [*folders, data_dir])


def unpacked_folders(spec: DatasetSpec, data_dir: Path, name: str) -> list[Path]:
    """Returns the paths that the folder ``name`` of the authors' archive may have."""
    return [data_dir / spec.name / name, data_dir / name, *([data_dir] if data_dir.name == name else [])]


def find_parquet(folders: Iterable[Path]) -> SplitFiles | None:
    """Returns the parquet files of both splits in the first of the folders that has any; None if none has."""
    for folder in folders:
        train = tuple(sorted(folder.glob("train*.parquet")))
        tests = ((split, tuple(sorted(folder.glob(f"{split}*.parquet")))) for split in TEST[:2])  # val* has valid* too
        split, test = next((files for files in tests if files[1]), ("test", ()))
        if train or test:
            _check_all_parts(folder, "train", train)
            _check_all_parts(folder, split, test)
            return SplitFiles(f"parquet in {folder}", folder, train, test)
    return None


def _check_all_parts(folder: Path, split: str, files: tuple[Path, ...]) -> None:
    """Raises an error if a part is missing: an interrupted download must not become a smaller data set."""
    if not files:
        raise UserError(f"{folder}: has no {split}-*.parquet; get the missing files too")
    numbers = [(int(part[1]), int(part[2])) for file in files if (part := _PARQUET_PART.search(file.stem))]
    if not numbers:
        return
    count = numbers[0][1]
    if sorted(numbers) != [(number, count) for number in range(count)] or len(numbers) != len(files):
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: the files {names} are not the {count} parts of one {split} split; get it again")


def not_found(
    spec: DatasetSpec, data_dir: Path, parquet: Iterable[Path], folders: Iterable[Path], hub: str, archive: str
) -> UserError:
    """Returns the error for a set that is on the public hub as ``hub``, and on its authors' site as ``archive``."""
    return UserError(
        f"{spec.name} is not there: looked for train-*.parquet in {', '.join(map(str, parquet))} and for "
        f"{' and '.join(map(str, folders))}; get it with `kd-bench data fetch {spec.name}` or `hf download {hub} "
        f"--repo-type dataset --local-dir {data_dir / spec.name}` or unpack {archive} in {data_dir}, or set "
        "--data or KD_BENCH_DATA to the folder that holds it"
    )


def find_shards(folder: Path) -> SplitFiles | None:
    """Returns the shards of a WebDataset in a folder, in the order of their numbers; None if there are none.

    Their names hold split and number: ``train-000000.tar`` and ``val-000000.tar`` or, as in timm's copy of ImageNet on
    the public hub, ``imagenet1k-train-0000.tar`` and ``imagenet1k-validation-00.tar``. Or there is a folder per split:
    ``train/0.tar``.
    """
    splits: dict[str, dict[int, Path]] = {}
    for file in _tars(folder):
        if name := _TAR.fullmatch(file.name):
            _add_shard(splits, name[1], int(name[2]), file)
    if not splits:
        for split in _SPLITS:
            for file in _tars(folder / split):
                if name := _NUMBERED_TAR.fullmatch(file.name):
                    _add_shard(splits, split, int(name[1]), file)
    if not splits:
        return None
    test_split = next((split for split in TEST if split in splits), None)
    if "train" not in splits or test_split is None:
        present, lacking = ("train", " or ".join(TEST)) if "train" in splits else (str(test_split), "train")
        raise UserError(f"{folder}: has shards of {present}, but none of {lacking}; get the missing files too")
    for split in ("train", test_split):
        _check_numbers(folder, splits[split])
    train, test = (tuple(file for _, file in sorted(splits[split].items())) for split in ("train", test_split))
    _check_announced(folder, {file.name for file in (*train, *test)})
    description = f"{len(train)} shards to train on and {len(test)} to test on in {folder}"
    return SplitFiles(description, folder, train, test)


def _add_shard(splits: dict[str, dict[int, Path]], split: str, number: int, file: Path) -> None:
    other = splits.setdefault(split, {}).setdefault(number, file)
    if other != file:
        raise UserError(
            f"{file.parent}: {other.name} and {file.name} are both shard {number} of {split}; keep one data set in a "
            "folder, and give each of its shards a number of its own"
        )


def _tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if not file.name.startswith("."))


def _check_numbers(folder: Path, shards: dict[int, Path]) -> None:
    """Raises an error if a number is missing: an interrupted download must not become a smaller data set."""
    first, last = min(shards), max(shards)
    missing = sorted(set(range(min(first, 1), last + 1)) - set(shards))
    if missing:
        example = shards[last].name
        raise UserError(f"{folder}: shard {missing[0]} is missing, but {example} is there; get the missing files too")


def _check_announced(folder: Path, names: set[str]) -> None:
    """Compares the shards with the list in timm's copies, which shows whether shards are missing at the end."""
    info = folder / "_info.json"
    try:
        splits = json.loads(info.read_bytes())["splits"]
        announced = {split: list(content["filenames"]) for split, content in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # there is no list, or it has another form
    for split, expected in announced.items():
        missing = [name for name in expected if isinstance(name, str) and name not in names]
        if missing and len(missing) < len(expected):
            raise UserError(f"{folder}: {missing[0]} is missing, which {info.name} lists for {split}; get it too")


def class_folders(folder: Path) -> dict[str, Path]:
    """Returns the folders in ``folder`` that are not hidden, by name, sorted."""
    return {name: folder / name for name in _list_names(folder, lambda name: True, lambda entry: entry.is_dir())}


def image_names(folder: Path) -> list[str]:
    """Returns the names of the image files directly in ``folder`` that are not hidden, sorted."""
    return _list_names(folder, is_image, lambda entry: entry.is_file())


def _list_names(
    folder: Path, accept_name: Callable[[str], bool], accept: Callable[[os.DirEntry[str]], bool]
) -> list[str]:
    """Returns the sorted names of entries that are not hidden.

    A link that leads nowhere is an error: where data are not fetched yet, or were moved, a set must not become smaller.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not accept_name(entry.name):
                    continue
                if accept(entry):
                    names.append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                    raise UserError(f"{entry.path}: is a link that leads nowhere; restore what it names, or remove it")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(names)


def is_image(name: str) -> bool:
    """Returns whether a file name has the suffix of an image."""
    _, dot, end = name.rpartition(".")
    return (dot + end).lower() in SUFFIXES


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file. Raises a UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def check_same_classes(train: Path, test: Path, train_classes: Iterable[str], test_classes: Iterable[str]) -> None:
    """Raises a UserError unless both splits have the same classes, two or more."""
    in_train, in_test = set(train_classes), set(test_classes)
    for has, lacks, only in ((train, test, in_train - in_test), (test, train, in_test - in_train)):
        if only:
            raise UserError(f"{lacks}: has no class {min(only)!r}, which {has} has; both must have the same classes")
    if len(in_train) < 2:
        raise UserError(f"{train}: has only one class, {min(in_train)!r}; there must be two or more")


def folder_fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Returns names and times of change of folders, by which the cache notices that their content has changed.

    A folder's times change when a file in it is added, removed, renamed or replaced by renaming, and when an archive is
    unpacked anew. A file overwritten in place is not noticed: that would need a look at up to a million files at every
    start.

    Raises:
        UserError: As ``fingerprint``.
    """
    return fingerprint(paths, "st_mtime_ns", "st_ctime_ns")
