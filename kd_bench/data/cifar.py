"""CIFAR-100, from the public hub's parquet files or from those of the authors that torchvision reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.cache import Decoded
    from kd_bench.data.registry import DatasetSpec
    from kd_bench.data.splits import Splits

#: The folder in the authors' archive.
BASE = "cifar-100-python"
ARCHIVE = f"https://www.cs.toronto.edu/~kriz/{BASE}.tar.gz"
HUB = "uoft-cs/cifar100"

_SHARD = re.compile(r"-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Layout:
    """The files that were found."""

    kind: str
    """"parquet" or "torchvision files"."""
    folder: Path
    train: tuple[Path, ...]
    """What the training set is read from, in order."""
    test: tuple[Path, ...]


def locate(spec: DatasetSpec, data_dir: Path) -> str:
    """Where the images are.

    Raises:
        UserError: They are not there, or some files are missing.
    """
    layout = _find(spec, data_dir)
    return f"{layout.kind} in {layout.folder}"


def load(spec: DatasetSpec, data_dir: Path, labels: str | None) -> Splits:
    """Both splits, in the order of the files; decoded once and then taken from the cache.

    Raises:
        UserError: The files are not there, or damaged.
    """
    import torch

    from kd_bench.data import cache
    from kd_bench.data.splits import Splits

    layout = _find(spec, data_dir)
    kind = spec.labels.index(labels) if labels else 0
    train, test = (
        cache.load(f"{spec.name}-{split}", sources, partial(_decode, spec, layout, split))
        for split, sources in (("train", layout.train), ("test", layout.test))
    )
    if train.class_names != test.class_names:
        raise UserError(f"{layout.folder}: training and test files do not name the same classes; get them again")
    return Splits(
        train_images=torch.from_numpy(train.images),
        train_labels=torch.from_numpy(train.labels[:, kind].copy()),
        test_images=torch.from_numpy(test.images),
        test_labels=torch.from_numpy(test.labels[:, kind].copy()),
        class_names=train.class_names[kind],
        mean=spec.mean,
        std=spec.std,
    )


def _find(spec: DatasetSpec, data_dir: Path) -> Layout:
    named = data_dir / spec.name
    parquet = (named, named / spec.name, named / "data", data_dir)
    for folder in parquet:
        train, test = (tuple(sorted(folder.glob(f"{split}-*.parquet"))) for split in ("train", "test"))
        if train or test:
            for split, files in (("train", train), ("test", test)):
                _check_whole(folder, split, files)
            return Layout("parquet", folder, train, test)
    pickles = [named / BASE, data_dir / BASE, *([data_dir] if data_dir.name == BASE else [])]
    for folder in pickles:
        if folder.is_dir():
            for name in ("train", "test", "meta"):
                if not (folder / name).is_file():
                    raise UserError(f"{folder}: has no file {name!r}; unpack {ARCHIVE} again")
            meta = folder / "meta"
            return Layout("torchvision files", folder, (folder / "train", meta), (folder / "test", meta))
    raise UserError(
        f"{spec.name} is not there: looked for train-*.parquet in {', '.join(map(str, parquet))} and for "
        f"{' and '.join(map(str, pickles))}; get it with `hf download {HUB} --repo-type dataset --local-dir {named}` "
        f"or unpack {ARCHIVE} in {data_dir}, or say with --data or KD_BENCH_DATA where it is"
    )


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


def _decode(spec: DatasetSpec, layout: Layout, split: str) -> Decoded:
    if layout.kind != "parquet":
        return _read_pickles(layout.folder, train=split == "train")
    from kd_bench.data import parquet

    columns = {f"{kind}_label": count for kind, count in zip(spec.labels, spec.label_classes, strict=True)}
    return parquet.read(layout.train if split == "train" else layout.test, columns, spec.image_size)


def _read_pickles(folder: Path, train: bool) -> Decoded:
    """Reads the authors' files by torchvision, which unpickles nothing whose checksum is not the published one."""
    import pickle

    import numpy as np
    from torchvision.datasets import CIFAR100

    from kd_bench.data.cache import Decoded

    try:
        dataset = CIFAR100(folder.parent, train=train, download=False)
        # torchvision keeps the fine labels only; the others are in the same files, whose checksums it has just checked.
        split, meta = (
            pickle.loads((folder / name).read_bytes(), encoding="latin1")
            for name in ("train" if train else "test", "meta")
        )
    except RuntimeError as error:
        raise UserError(f"{_damaged(folder)}: its checksum is not the published one; unpack {ARCHIVE} again") from error
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    labels = np.array([dataset.targets, split["coarse_labels"]], np.int64).T.copy()
    return Decoded(images, labels, (tuple(dataset.classes), tuple(meta["coarse_label_names"])))


def _damaged(folder: Path) -> Path:
    """The file that torchvision, which does not say, refused."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity

    checksums = [*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])]
    bad = (folder / name for name, md5 in checksums if not check_integrity(folder / name, md5))
    return next(bad, folder)
