"""Shards of a WebDataset: tar files of images, read where each image lies, so that any image is as near as any other.

A sample is an image and its label, whose names agree up to the first dot: ``7.jpg`` and ``7.cls``. The label is what
``.cls`` holds, or ``label`` in ``.json``; where there is neither, it is the folder in the image's name.
``kd_bench.data.sources.find_files.shards`` says how the shards are called.

What is in them is found out once and kept in the cache folder. Samples are sorted by class and name as files in folders
are, so the same images give the same batches from either.
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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kd_bench.data.file_dataset import FileDataset, Files
from kd_bench.data.sources import find_files
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import cache_folder

if TYPE_CHECKING:
    from kd_bench.config.data import Pipeline
    from kd_bench.data.dataset_spec import DatasetSpec

_VERSION = 1  # to be raised when what is kept in the cache changes
_ONE_BLOCK = 512  # bytes of the zeros that end an archive, at least
_LONGEST_LABEL = 1 << 20  # bytes


@dataclass(frozen=True)
class ShardFiles(Files):
    """The images of one split, sorted by class and name; ``folders`` are the shards, not one a class."""

    shard: np.ndarray
    """(N,) int64: which shard an image is in."""
    offset: np.ndarray
    """(N,) int64: where in it, in bytes."""
    size: np.ndarray
    """(N,) int64: how many bytes it has."""

    def path(self, index: int) -> Path:
        """The shard and, as if it were a folder, the image in it."""
        return self.folders[self.shard[index]] / self.name(index)

    def home(self, index: int) -> str:
        """Where the images of its class are, for people."""
        return f"{self.folders[0].parent}: the class of {self.name(index)}"

    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            UserError: The shard cannot be read, or is shorter than it was.
        """
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

    def take(self, which: np.ndarray) -> ShardFiles:
        """Only those images, which keep their order."""
        names, classes = self.names[which], self.classes[which]
        shard, offset, size = self.shard[which], self.offset[which], self.size[which]
        return replace(self, names=names, classes=classes, shard=shard, offset=offset, size=size)


def listed(spec: DatasetSpec, shards: find_files.Shards, pipeline: Pipeline) -> FileDataset:
    """Both splits, of which only names and places are read.

    Classes are numbered in the order of their numbers, or of their names where they have names.

    Raises:
        UserError: A shard is damaged, an image has no label, or the splits have not the same classes.
    """
    train, classes = _index(shards.train)
    test, others = _index(shards.test)
    find_files.check_same_classes(_pattern(shards.train), _pattern(shards.test), classes, others)
    return FileDataset(train=train, test=test, class_names=classes, mean=spec.mean, std=spec.std, pipeline=pipeline)


def _pattern(shards: Sequence[Path]) -> Path:
    return shards[0].with_name(re.sub(r"\d+(?=\.tar$)", "*", shards[0].name))


class _Sample(NamedTuple):
    """An image and where it lies."""

    label: int | str
    name: str
    shard: int
    offset: int
    size: int


def _index(shards: Sequence[Path]) -> tuple[ShardFiles, tuple[str, ...]]:
    """The images of a split and its classes, from the cache where the shards are as they were."""
    stats = [(shard.name, (stat := shard.stat()).st_size, stat.st_mtime_ns) for shard in shards]
    key = hashlib.sha256(json.dumps([_VERSION, stats]).encode()).hexdigest()[:32]
    place = cache_folder() / "shards" / f"{key}.npz"
    columns = ("names", "classes", "shard", "offset", "size")
    try:
        with np.load(place, allow_pickle=False) as kept:
            return ShardFiles(tuple(shards), *(kept[column] for column in columns)), tuple(kept["class_names"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged
    samples = [sample for number, shard in enumerate(shards) for sample in _samples(shard, number)]
    files, class_names = _sorted(shards, samples)
    content = io.BytesIO()
    arrays = {column: getattr(files, column) for column in columns}
    np.savez(content, class_names=np.array(class_names), **arrays)
    with contextlib.suppress(OSError):  # then it is found out again at the next start
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, content.getvalue())
    return files, class_names


def _sorted(shards: Sequence[Path], samples: list[_Sample]) -> tuple[ShardFiles, tuple[str, ...]]:
    if not samples:
        raise UserError(f"{_pattern(shards)}: has no images ({', '.join(sorted(find_files.SUFFIXES))})")
    first = samples[0]
    for one in samples:
        if type(one.label) is not type(first.label):
            here, there = (f"{shards[s.shard].name}: {s.name} has the label {s.label!r}" for s in (first, one))
            raise UserError(f"{shards[0].parent}: {here}, and {there}; all must be numbers, or all names")
    labels: list[int | str] = sorted({one.label for one in samples})
    rank = {label: number for number, label in enumerate(labels)}
    samples = sorted(samples, key=lambda one: (rank[one.label], PurePosixPath(one.name).name, one.name))
    numbers = np.array([(rank[one.label], one.shard, one.offset, one.size) for one in samples], np.int64)
    classes, shard, offset, size = (np.ascontiguousarray(column) for column in numbers.T)
    names = np.array([one.name.encode("utf-8", "surrogateescape") for one in samples], "S")
    return ShardFiles(tuple(shards), names, classes, shard, offset, size), tuple(map(str, labels))


def _samples(shard: Path, number: int) -> Iterator[_Sample]:
    """The images of a shard with their labels."""
    images: dict[str, tuple[int, int]] = {}
    texts: dict[tuple[str, str], bytes] = {}
    for name, offset, size, text in _members(shard):
        if text is None:
            images[name] = offset, size  # of two with one name the later counts, as when an archive is unpacked
        else:
            texts[_parts(name)] = text
    for name, (offset, size) in images.items():
        key, kind = _parts(name)
        label = _label(shard, key, texts)
        if label is None:
            label = PurePosixPath(name).parent.name
            if not label:
                raise UserError(f"{shard}: {name} has no label: there is no {key}.cls, and it is in no folder")
        elif "." in kind:
            continue  # another picture of a sample, x.mask.png
        yield _Sample(label, name, number, offset, size)


def _parts(name: str) -> tuple[str, str]:
    """A name up to the first dot after its folders, and what comes after that, in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, kind = base.partition(".")
    return f"{folder}{slash}{key}", kind.lower()


def _label(shard: Path, key: str, texts: dict[tuple[str, str], bytes]) -> int | str | None:
    """What the files beside an image say; None where they say nothing."""
    written = texts.get((key, "cls"))
    if written is not None:
        text = written.decode("utf-8", "replace").strip()
        if not text:
            raise UserError(f"{shard}: {key}.cls is empty; it should hold a label")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else text
    if (key, "json") not in texts:
        return None
    try:
        found = json.loads(texts[key, "json"])
    except ValueError as error:
        raise UserError(f"{shard}: {key}.json is no JSON ({error})") from error
    label = found.get("label") if isinstance(found, dict) else None
    return label if isinstance(label, (int, str)) and not isinstance(label, bool) and label != "" else None


def _members(shard: Path) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Name, place and size in bytes of the images in a shard, and of the labels with what is in them.

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
                if find_files.is_image(base):
                    yield name, member.offset_data, member.size, None
                elif _parts(name)[1] in ("cls", "json"):
                    if member.size > _LONGEST_LABEL:
                        raise UserError(f"{shard}: {name} has {member.size:,} bytes, too many for a label")
                    file.seek(member.offset_data)
                    yield name, member.offset_data, member.size, file.read(member.size)
            file.seek(tar.offset)
            end = file.read(_ONE_BLOCK)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{shard}: is no tar file, or damaged after {last} ({error})") from error
    # Without the zeros at its end tarfile takes an archive for whole, and so it does one that is damaged in the middle.
    if end != bytes(_ONE_BLOCK):
        how = "damaged" if end else "cut short"
        raise UserError(f"{shard}: was {how} after {last}; get it again")
