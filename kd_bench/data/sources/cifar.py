"""CIFAR-10 and CIFAR-100, from the public hub's parquet files or from those of the authors that torchvision reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.data.sources import find_files
from kd_bench.data.sources.find_files import Layout
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec
    from kd_bench.data.decoded_cache import Allocate, Decoded


@dataclass(frozen=True)
class _Original:
    """The authors' files, and what they and the hub call things in them."""

    folder: str
    hub: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    keys: tuple[str, ...]
    """Of the labels, a kind each."""
    names: tuple[str, ...]
    """Of the classes' names, a kind each."""
    columns: tuple[str, ...]
    """Of the labels in the hub's files, a kind each."""

    @property
    def archive(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.folder.replace('batches-py', 'python')}.tar.gz"


_ORIGINALS = {
    "cifar10": _Original(
        folder="cifar-10-batches-py",
        hub="uoft-cs/cifar10",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        keys=("labels",),
        names=("label_names",),
        columns=("label",),
    ),
    "cifar100": _Original(
        folder="cifar-100-python",
        hub="uoft-cs/cifar100",
        train=("train",),
        test=("test",),
        meta="meta",
        keys=("fine_labels", "coarse_labels"),
        names=("fine_label_names", "coarse_label_names"),
        columns=("fine_label", "coarse_label"),
    ),
}


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images are.

    Raises:
        UserError: They are not there, or some files are missing.
    """
    return str(_find(spec, data_dir))


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """Both splits, in the order of the files; decoded once and then taken from the cache.

    Raises:
        UserError: The files are not there, or damaged.
    """
    from kd_bench.data import decoded_cache
    from kd_bench.data.array_dataset import ArrayDataset

    found = _find(spec, data_dir)
    kind = spec.labels.index(dataset.labels) if dataset.labels else 0
    train, test = (
        decoded_cache.load(f"{spec.name}-{split}", decoded_cache.facts(sources), partial(_decode, spec, found, sources))
        for split, sources in (("train", found.train), ("test", found.test))
    )
    if train.class_names != test.class_names:
        raise UserError(f"{found.folder}: training and test files do not name the same classes; get them again")
    return ArrayDataset.of(spec, train, test, train.class_names[kind], kind)


def download(spec: DatasetSpec, data_dir: Path) -> None:
    """Gets the authors' files by torchvision, unless they or the hub's are there; damaged ones are replaced.

    Raises:
        UserError: The folder cannot be written, or the hub's files are there in part.
        RunFailed: They cannot be reached, or their checksum is not the published one.
    """
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    from kd_bench.data.sources.archives import sentences

    found = _search(spec, data_dir)
    if found is not None and found.kind == "parquet":
        return
    folder = found.folder if found else data_dir / spec.name / _ORIGINALS[spec.name].folder
    if all(check_integrity(folder / name, md5) for name, md5 in _checksums(spec).items()):
        return
    known = _torchvisions(spec)
    with sentences(known.url, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(known.url, folder.parent, filename=known.filename, md5=known.tgz_md5)


def _find(spec: DatasetSpec, data_dir: Path) -> Layout:
    original = _ORIGINALS[spec.name]
    found = _search(spec, data_dir)
    if found is None:
        raise UserError(
            f"{spec.name} is not there: looked for train-*.parquet in "
            f"{', '.join(map(str, _parquet_folders(spec, data_dir)))} and for "
            f"{' and '.join(map(str, _pickle_folders(spec, data_dir)))}; get it with "
            f"`kd-bench data fetch {spec.name}` or "
            f"`hf download {original.hub} --repo-type dataset --local-dir {data_dir / spec.name}` or unpack "
            f"{original.archive} in {data_dir}, or say with --data or KD_BENCH_DATA where it is"
        )
    if found.kind != "parquet":
        for file in (*found.train, *found.test):
            if not file.is_file():
                raise UserError(f"{found.folder}: has no file {file.name!r}; unpack {original.archive} again")
    return found


def _search(spec: DatasetSpec, data_dir: Path) -> Layout | None:
    if found := find_files.parquet(_parquet_folders(spec, data_dir)):
        return found
    original = _ORIGINALS[spec.name]
    for folder in _pickle_folders(spec, data_dir):
        if folder.is_dir():
            train, test = (
                tuple(folder / name for name in (*names, original.meta)) for names in (original.train, original.test)
            )
            return Layout("torchvision files", folder, train, test)
    return None


def _parquet_folders(spec: DatasetSpec, data_dir: Path) -> tuple[Path, ...]:
    # "plain_text" is the folder that the hub's copy of CIFAR-10 has them in.
    return find_files.parquet_folders(spec, data_dir, inner=("plain_text",))


def _pickle_folders(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    name = _ORIGINALS[spec.name].folder
    return [data_dir / spec.name / name, data_dir / name, *([data_dir] if data_dir.name == name else [])]


def _decode(spec: DatasetSpec, found: Layout, sources: tuple[Path, ...], allocate: Allocate) -> Decoded:
    if found.kind != "parquet":
        return _read_pickles(spec, sources, allocate)
    from kd_bench.data.sources import parquet_reader

    classes = spec.label_classes or (spec.num_classes,)
    columns = dict(zip(_ORIGINALS[spec.name].columns, classes, strict=True))
    return parquet_reader.read(sources, columns, allocate, spec.image_size, native=spec.image_size)


def _torchvisions(spec: DatasetSpec) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[spec.name]


def _checksums(spec: DatasetSpec) -> dict[str, str]:
    """The published MD5 of every file, as torchvision has them."""
    known = _torchvisions(spec)
    return dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])


def _read_pickles(spec: DatasetSpec, sources: tuple[Path, ...], allocate: Allocate) -> Decoded:
    """Unpickles the authors' files; none whose checksum is not the published one.

    Not by torchvision's own class, because that keeps one kind of label only and all images several times in memory.
    """
    import numpy as np

    from kd_bench.data.decoded_cache import Decoded

    original, md5 = _ORIGINALS[spec.name], _checksums(spec)
    *batches, meta = sources
    names = _unpickle(meta, md5, original)
    labels, parts = [], []
    for batch in batches:
        content = _unpickle(batch, md5, original)
        parts.append(content["data"])
        labels.append(np.array([content[key] for key in original.keys], np.int64).T)
        del content
    side = spec.image_size
    images = allocate((sum(map(len, parts)), spec.channels, side, side))
    np.concatenate(parts, out=images.reshape(len(images), -1))
    return Decoded(images, np.concatenate(labels), tuple(tuple(names[key]) for key in original.names))


def _unpickle(file: Path, md5: dict[str, str], original: _Original) -> Any:
    import hashlib
    import pickle

    content = find_files.read(file)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5[file.name]:
        raise UserError(f"{file}: its checksum is not the published one; unpack {original.archive} again")
    return pickle.loads(content, encoding="latin1")
