"""Reads shards of a WebDataset: tar files of images, each image by its offset, so that any order costs the same.

A sample is an image and its label, whose names agree up to the first dot: ``7.jpg`` and ``7.cls``. The label is the
content of ``.cls``, or ``label`` in ``.json``; without either, it is the folder in the image's name.
``kd_bench.data.sources._find_files.find_shards`` documents the names of the shards.

The index of the samples is built once and kept in the cache folder. Samples are sorted by class and name as files in
folders are, so the same images give the same batches from either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from kd_bench.data.decoded_cache import file_fingerprint
from kd_bench.data.file_dataset import FileDataset, Files
from kd_bench.data.sources import _find_files
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import cache_folder

if TYPE_CHECKING:
    from kd_bench.config.data import Pipeline
    from kd_bench.data.dataset_spec import DatasetSpec

_VERSION = 1  # of the index; to be raised when its content changes
_ONE_BLOCK = 512  # bytes of zeros at the end of an archive, at least
_LONGEST_LABEL = 1 << 20  # bytes
_COLUMNS = ("names", "classes", "shard", "offset", "size")


@dataclass(frozen=True)
class ShardFiles(Files):
    """The images of one split, sorted by class and name; ``folders`` are the shards, not one per class."""

    shard: np.ndarray
    """(N,) int64: index of the shard that holds an image."""
    offset: np.ndarray
    """(N,) int64: position of the image in its shard, in bytes."""
    size: np.ndarray
    """(N,) int64: length of the image in bytes."""

    def path(self, index: int) -> Path:
        """Returns the shard and the image's name in it, as if the shard were a folder."""
        return self.folders[self.shard[index]] / self.name(index)

    def describe_class(self, index: int) -> str:
        """Returns a text that names the image's class, for messages."""
        return f"{self.folders[0].parent}: the class of {self.name(index)}"

    def read(self, index: int) -> bytes:
        """Returns the encoded image. Raises a UserError if the shard cannot be read, or has become shorter."""
        shard, size = self.folders[self.shard[index]], int(self.size[index])
        try:
            with open(shard, "rb") as file:
                file.seek(int(self.offset[index]))
                content = file.read(size)
        except OSError as error:
            raise UserError(f"{shard}: cannot be read ({error.strerror})") from error
        if len(content) < size:
            raise UserError(f"{shard}: ends within {self.name(index)}; it was cut short, so get it again")
        return content

    def sizes(self) -> np.ndarray:
        """Returns the lengths of the images in bytes: (N,) int64."""
        return self.size

    def select(self, rows: np.ndarray) -> Self:
        """Returns the images in ``rows``, an index or a mask."""
        return replace(self, **{column: getattr(self, column)[rows] for column in _COLUMNS})


def list_files(spec: DatasetSpec, shards: _find_files.SplitFiles, pipeline: Pipeline) -> FileDataset:
    """Lists the images of both splits without reading them.

    Classes are numbered in the order of their numbers, or of their names if they have names.
    """
    train, classes = _index(shards.train)
    test, test_classes = _index(shards.test)
    patterns = _pattern(shards.train), _pattern(shards.test)
    _find_files.check_same_classes(*patterns, classes, test_classes)
    if classes != test_classes:  # numbers and names have different orders: 2 is before 10, and "10" before "2"
        raise UserError(
            f"{patterns[0]} and {patterns[1]}: the labels of one are numbers, and those of the other are names; write "
            "them in the same way"
        )
    return FileDataset(train, test, classes, spec.mean, spec.std, pipeline)


def _pattern(shards: Sequence[Path]) -> Path:
    return shards[0].with_name(re.sub(r"\d+(?=\.tar$)", "*", shards[0].name))


class _Sample(NamedTuple):
    """An image and its position."""

    label: int | str
    name: str
    shard: int
    offset: int
    size: int


def _index(shards: Sequence[Path]) -> tuple[ShardFiles, tuple[str, ...]]:
    """Returns the images of a split and its classes, from the cache if the shards have not changed."""
    key = hashlib.sha256(json.dumps([_VERSION, file_fingerprint(shards)]).encode()).hexdigest()[:32]
    path = cache_folder() / "shards" / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = (saved[column] for column in _COLUMNS)
            return ShardFiles(tuple(shards), *arrays), tuple(saved["class_names"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or damaged
    samples = [sample for number, shard in enumerate(shards) for sample in _samples(shard, number)]
    files, class_names = _sort(shards, samples)
    content = io.BytesIO()
    np.savez(content, class_names=np.array(class_names), **{column: getattr(files, column) for column in _COLUMNS})
    with contextlib.suppress(OSError):  # without the cache, the next start builds the index again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    return files, class_names


def _sort(shards: Sequence[Path], samples: list[_Sample]) -> tuple[ShardFiles, tuple[str, ...]]:
    if not samples:
        raise UserError(f"{_pattern(shards)}: has no images ({', '.join(sorted(_find_files.SUFFIXES))})")
    first = samples[0]
    for sample in samples:
        if type(sample.label) is not type(first.label):
            first_text, other_text = (
                f"{shards[s.shard].name}: {s.name} has the label {s.label!r}" for s in (first, sample)
            )
            raise UserError(f"{shards[0].parent}: {first_text}, and {other_text}; all must be numbers, or all names")
    labels: list[int | str] = sorted({sample.label for sample in samples})
    class_of = {label: number for number, label in enumerate(labels)}
    samples = sorted(samples, key=lambda s: (class_of[s.label], PurePosixPath(s.name).name, s.name))
    numbers = np.array([(class_of[s.label], s.shard, s.offset, s.size) for s in samples], np.int64)
    classes, shard, offset, size = (np.ascontiguousarray(column) for column in numbers.T)
    names = np.array([sample.name.encode("utf-8", "surrogateescape") for sample in samples], "S")
    return ShardFiles(tuple(shards), names, classes, shard, offset, size), tuple(map(str, labels))


def _samples(shard: Path, number: int) -> Iterator[_Sample]:
    """Yields the images of a shard with their labels."""
    images: dict[str, tuple[int, int]] = {}
    texts: dict[tuple[str, str], bytes] = {}
    for name, offset, size, text in _members(shard):
        if text is None:
            images[name] = offset, size  # of two with one name the later counts, as when an archive is unpacked
        else:
            texts[_split_name(name)] = text
    for name, (offset, size) in images.items():
        key, extension = _split_name(name)
        label = _label(shard, key, texts)
        if label is None:
            label = PurePosixPath(name).parent.name
            if not label:
                raise UserError(f"{shard}: {name} has no label: there is no {key}.cls, and it is in no folder")
        elif "." in extension:
            continue  # another picture of a sample, x.mask.png
        yield _Sample(label, name, number, offset, size)


def _split_name(name: str) -> tuple[str, str]:
    """Returns a name up to the first dot after its folders, and the rest in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def _label(shard: Path, key: str, texts: dict[tuple[str, str], bytes]) -> int | str | None:
    """Returns the label in the files beside an image; None if there is none."""
    written = texts.get((key, "cls"))
    if written is not None:
        text = written.decode("utf-8", "replace").strip()
        if not text:
            raise UserError(f"{shard}: {key}.cls is empty; it should hold a label")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else text
    if (key, "json") not in texts:
        return None
    try:
        content = json.loads(texts[key, "json"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shard}: {key}.json is no JSON ({error})") from error
    label = content.get("label") if isinstance(content, dict) else None
    return label if isinstance(label, (int, str)) and not isinstance(label, bool) and label != "" else None


def _members(shard: Path) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Yields name, offset and size in bytes of the images in a shard, and of the labels with their content.

    Raises:
        UserError: It is no tar file, or damaged: names the last member that is whole.
    """
    last = "its beginning"
    length = shard.stat().st_size
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.offset_data + member.size > length:
                    raise UserError(f"{shard}: ends within {name}; it was cut short, so get it again")
                last = name
                base = name.rpartition("/")[2]
                if not member.isreg() or member.issparse() or base.startswith("."):
                    continue
                if _find_files.is_image(base):
                    yield name, member.offset_data, member.size, None
                elif _split_name(name)[1] in ("cls", "json"):
                    if member.size > _LONGEST_LABEL:
                        raise UserError(f"{shard}: {name} has {member.size:,} bytes, too many for a label")
                    file.seek(member.offset_data)
                    yield name, member.offset_data, member.size, file.read(member.size)
            file.seek(tar.offset)
            end = file.read(_ONE_BLOCK)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{shard}: is no tar file, or damaged after {last} ({error})") from error
    # tarfile does not notice missing zeros at the end, nor damage in the middle, after which it stops early.
    if end != bytes(_ONE_BLOCK):
        damage = "damaged" if end else "cut short"
        raise UserError(f"{shard}: was {damage} after {last}; get it again")
