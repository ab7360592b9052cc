"""CIFAR-10 and CIFAR-100, from the public hub's parquet files or from those of the authors that torchvision reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources import _find_files
from kd_bench.data.sources._find_files import SplitFiles
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.decoded_cache import Allocate, Decoded


@dataclass(frozen=True)
class _Original:
    """Names in the authors' files."""

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    kinds: tuple[str, ...]
    """Kinds of label: columns in the hub's files; with endings, keys in the authors'."""

    @property
    def archive(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.folder.replace('batches-py', 'python')}.tar.gz"


_ORIGINALS = {
    "cifar10": _Original(
        "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", ("label",)
    ),
    "cifar100": _Original("cifar-100-python", ("train",), "test", "meta", ("fine_label", "coarse_label")),
}

# Mean and std are those that the published teachers were trained with: of all pixels of all training images. For
# CIFAR-10 one also finds std 0.2023 0.1994 0.2010, the mean of the images' own. CIFAR-100's differ from the exact ones
# in the fourth digit.
_CIFAR10 = DatasetSpec(
    name="cifar10",
    title="CIFAR-10",
    num_classes=10,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop=4,
    train_size=50_000,
    test_size=10_000,
    source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; "
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    downloadable=True,
    hub=("uoft-cs/cifar10", "test"),
)
_CIFAR100 = replace(
    _CIFAR10,
    name="cifar100",
    title="CIFAR-100",
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    labels=("fine", "coarse"),
    label_classes=(100, 20),
    options=("labels",),
    # Sum and sum of squares of the pixels of these images, by channel and split, are the published ones to all digits.
    digests=("4c389e33634158ced5d2106fdcd48797", "202712ac4ccd4f83dfa4d01307b1725a"),
    hub=("uoft-cs/cifar100", "test"),
)
SPECS = (_CIFAR10, _CIFAR100)


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> SplitFiles:
    """Returns the hub's files, else the authors'."""
    original = _ORIGINALS[spec.name]
    files = _search(spec, data_dir)
    if files is None:
        parquet, folders = _parquet_folders(spec, data_dir), _pickle_folders(spec, data_dir)
        raise _find_files.not_found(spec, data_dir, parquet, folders, f"uoft-cs/{spec.name}", original.archive)
    for file in (*files.train, *files.test):
        if not file.is_file() and not _is_parquet(files.train):
            raise UserError(f"{files.folder}: has no file {file.name!r}; unpack {original.archive} again")
    return files


def load(spec: DatasetSpec, dataset: Dataset, files: SplitFiles) -> ArrayDataset:
    """Loads both splits, in the order of the files; decoded once and then taken from the cache."""
    from kd_bench.data import decoded_cache
    from kd_bench.data.array_dataset import ArrayDataset

    kind = spec.labels.index(dataset.labels) if dataset.labels else 0
    train, test = (
        decoded_cache.load(f"{spec.name}-{split}", decoded_cache.file_fingerprint(paths), partial(_decode, spec, paths))
        for split, paths in (("train", files.train), ("test", files.test))
    )
    if train.class_names != test.class_names:
        raise UserError(f"{files.folder}: training and test files do not name the same classes; get them again")
    return ArrayDataset.from_decoded(spec, train, test, train.class_names[kind], kind)


def download(spec: DatasetSpec, data_dir: Path) -> None:
    """Downloads the authors' files with torchvision, unless they or the hub's are there; replaces damaged ones."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    from kd_bench.data.sources._archives import explain_errors

    files = _search(spec, data_dir)
    if files is not None and _is_parquet(files.train):
        return
    folder = files.folder if files else data_dir / spec.name / _ORIGINALS[spec.name].folder
    if all(check_integrity(folder / name, md5) for name, md5 in _checksums(spec).items()):
        return
    published = _torchvision_class(spec)
    with explain_errors(published.url, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(published.url, folder.parent, filename=published.filename, md5=published.tgz_md5)


def _search(spec: DatasetSpec, data_dir: Path) -> SplitFiles | None:
    if files := _find_files.find_parquet(_parquet_folders(spec, data_dir)):
        return files
    original = _ORIGINALS[spec.name]
    for folder in _pickle_folders(spec, data_dir):
        if folder.is_dir():
            train, test = (
                tuple(folder / name for name in (*names, original.meta)) for names in (original.train, (original.test,))
            )
            return SplitFiles(f"torchvision files in {folder}", folder, train, test)
    return None


def _parquet_folders(spec: DatasetSpec, data_dir: Path) -> tuple[Path, ...]:
    # "plain_text" is the folder of the hub's copy of CIFAR-10.
    return _find_files.parquet_folders(spec, data_dir, inner=("plain_text",))


def _pickle_folders(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    return _find_files.unpacked_folders(spec, data_dir, _ORIGINALS[spec.name].folder)


def _is_parquet(paths: tuple[Path, ...]) -> bool:
    return paths[0].suffix == ".parquet"


def _decode(spec: DatasetSpec, paths: tuple[Path, ...], allocate: Allocate) -> Decoded:
    if not _is_parquet(paths):
        return _read_pickles(spec, paths, allocate)
    from kd_bench.data.sources import _parquet_reader

    classes = spec.label_classes or (spec.num_classes,)
    columns = dict(zip(_ORIGINALS[spec.name].kinds, classes, strict=True))
    return _parquet_reader.read(paths, columns, allocate, spec.image_size, native_size=spec.image_size)


def _torchvision_class(spec: DatasetSpec) -> Any:
    from torchvision import datasets

    return getattr(datasets, spec.name.upper())


def _checksums(spec: DatasetSpec) -> dict[str, str]:
    """Returns the published MD5 of every file, as torchvision has them."""
    published = _torchvision_class(spec)
    return dict([*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])])


def _read_pickles(spec: DatasetSpec, paths: tuple[Path, ...], allocate: Allocate) -> Decoded:
    """Unpickles the authors' files, but none whose checksum is not the published one.

    torchvision's class is not used, because it keeps one kind of label only and all images several times in memory.
    """
    import numpy as np

    from kd_bench.data.decoded_cache import Decoded

    original, md5 = _ORIGINALS[spec.name], _checksums(spec)
    *batches, meta = paths
    names = _unpickle(meta, md5, original)
    labels, parts = [], []
    for batch in batches:
        content = _unpickle(batch, md5, original)
        parts.append(content["data"])
        labels.append(np.array([content[f"{kind}s"] for kind in original.kinds], np.int64).T)
    images = allocate((sum(map(len, parts)), spec.channels, spec.image_size, spec.image_size))
    np.concatenate(parts, out=images.reshape(len(images), -1))
    return Decoded(images, np.concatenate(labels), tuple(tuple(names[f"{kind}_names"]) for kind in original.kinds))


def _unpickle(file: Path, md5: dict[str, str], original: _Original) -> Any:
    import hashlib
    import pickle

    content = _find_files.read_bytes(file)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5[file.name]:
        raise UserError(f"{file}: its checksum is not the published one; unpack {original.archive} again")
    return pickle.loads(content, encoding="latin1")
