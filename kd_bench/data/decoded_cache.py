"""Images are decoded once: into one uint8 array a split, in a cache folder, that all processes of a machine share.

An entry is three files named after the data set, the split and a key of its source: the images and the labels as
``.npy``, and a record with their checksums, written last. The decoder writes straight into the file of the images, so
that they are never in memory a second time. All files are written under another name and renamed, so that nobody reads
half of one. What fails its checksum is built again. Entries of sources that are gone stay until the user deletes the
folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from kd_bench.utils.errors import UserError
from kd_bench.utils.files import disk_bytes, write_json
from kd_bench.utils.paths import cache_folder

_VERSION = 2  # to be raised when what is decoded, or how it is kept, changes
_BLOCK = 1 << 20
_MOST_BLOCKS = 256  # of a file that are checked: at 4 GB/s a start is then held up by less than 0.1 s

#: Gives the decoder an array of this shape, uint8, to write the images into; to be called once.
Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """One split, decoded."""

    images: np.ndarray
    """(N, 3, H, W) uint8, C-contiguous."""
    labels: np.ndarray
    """(N, L) int64: a column a kind of label."""
    class_names: tuple[tuple[str, ...], ...]
    """The names of the classes, for each kind of label; none where the source does not tell."""


def facts(sources: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells that files have changed: their names, sizes and times of change.

    Raises:
        UserError: One is not there, as where a link leads nowhere.
    """
    try:
        stats = [(path.name, path.stat()) for path in sources]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def load(name: str, source: object, decode: Callable[[Allocate], Decoded]) -> Decoded:
    """What ``decode`` gives, from the cache if it is there, and put there if it can be.

    Of several processes that want the same entry at once, one decodes and the others wait for it. A cache folder that
    cannot be written or locked is no error: every process then decodes for itself, into its memory.

    Args:
        name: The entry's name, e.g. "cifar100-train".
        source: All that the images depend on, as JSON can write it, e.g. the ``facts`` of files; the entry is good as
            long as it is the same.
        decode: Writes the images into the array that it asks for, and returns that with the rest.

    Returns:
        The images as a copy-on-write map of the cache file where there is one.

    Raises:
        UserError: There is room for the images neither in the folder nor in memory.
    """
    key = hashlib.blake2b(json.dumps([_VERSION, source]).encode(), digest_size=8).hexdigest()
    place, stem = cache_folder(), f"{name}-{key}"
    if found := _read(place, stem):
        return found
    with _alone(place, stem) as locked:
        if found := _read(place, stem):  # built by another process in the meantime
            return found
        if locked:
            _remove_leftovers(place, stem)
        with _temporary(place, f"{stem}-images.npy") as images:
            decoded = decode(lambda shape: _allocate(images, shape))
            if isinstance(decoded.images, np.memmap):
                _write(place, stem, images, decoded)
    return _read(place, stem) or decoded


@dataclass(frozen=True)
class CacheEntry:
    """One decoded split in a cache folder."""

    name: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk."""
        return sum(map(disk_bytes, self.files))

    @property
    def used(self) -> float:
        """When it was last read, in seconds since 1970."""
        return max(file.stat().st_atime for file in self.files)

    def remove(self) -> None:
        """Removes its files."""
        for file in self.files:
            file.unlink(missing_ok=True)


def entries(place: Path) -> list[CacheEntry]:
    """The decoded splits of a cache folder."""
    found = [
        CacheEntry(record.stem, (record, *(place / f"{record.stem}-{part}.npy" for part in ("images", "labels"))))
        for record in sorted(place.glob("*.json"))
    ]
    return [entry for entry in found if all(file.is_file() for file in entry.files)]


def _read(place: Path, stem: str) -> Decoded | None:
    try:
        record = json.loads((place / f"{stem}.json").read_bytes())
        arrays = {}
        for part, checksum in record["checksums"].items():
            path = place / f"{stem}-{part}.npy"
            if _checksum(path) != checksum:
                return None
            # Copy-on-write rather than read-only, because torch wants memory that may be written.
            arrays[part] = np.load(path, mmap_mode="c", allow_pickle=False)
        return Decoded(arrays["images"], arrays["labels"], tuple(tuple(kind) for kind in record["class_names"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # not there, or damaged


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32: of all of a file that is not large, else of blocks spread evenly over it.

    A file that was cut short, not wholly written or overwritten is found out; in one of many GB a flipped bit, which a
    training does not notice either, may not be.
    """
    buffer, crc = bytearray(_BLOCK), 0
    with open(path, "rb", buffering=0) as file:
        size = path.stat().st_size
        blocks = math.ceil(size / _BLOCK)
        for number in range(count := min(blocks, _MOST_BLOCKS)):
            file.seek(number * (blocks - 1) // max(count - 1, 1) * _BLOCK)
            crc = zlib.crc32(memoryview(buffer)[: file.readinto(buffer)], crc)
    return [size, crc]


def _remove_leftovers(place: Path, stem: str) -> None:
    """Of processes that were killed while writing: whoever holds the lock is the only one at work."""
    with contextlib.suppress(OSError):
        for left in place.glob(f".{stem}*.tmp"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(place: Path, name: str) -> Iterator[Path]:
    """A name to write a file under, before it is renamed; removes what has not been renamed."""
    path = place / f".{name}.{secrets.token_hex(6)}.tmp"
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _allocate(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a new file, or in memory where there can be no file."""
    size = math.prod(shape)
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        # A map of a file that has no blocks yet would end the process, not raise an error, when the disk is full.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError("no space left on device")
        return array
    except (OSError, OverflowError) as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if size > 0.8 * psutil.virtual_memory().available:
            raise UserError(
                f"{path.parent}: {size / 2**30:.1f} GiB of decoded images fit neither there ({error}) nor in memory; "
                "name a folder with more room in KD_BENCH_CACHE"
            ) from error
        return np.empty(shape, np.uint8)


def _write(place: Path, stem: str, images: Path, decoded: Decoded) -> None:
    with contextlib.suppress(OSError), _temporary(place, f"{stem}-labels.npy") as labels:
        decoded.images.flush()  # type: ignore[attr-defined]  # load() has seen that it is a map
        with open(labels, "wb") as file:
            np.save(file, decoded.labels, allow_pickle=False)
        checksums = {}
        for part, path in (("images", images), ("labels", labels)):
            checksums[part] = _checksum(path)
            os.replace(path, place / f"{stem}-{part}.npy")
        write_json(place / f"{stem}.json", {"checksums": checksums, "class_names": decoded.class_names})


@contextlib.contextmanager
def _alone(place: Path, stem: str) -> Iterator[bool]:
    """Holds the entry's lock, which the system takes back from a process that dies; False where it cannot be had."""
    with contextlib.ExitStack() as stack:
        locked = False
        with contextlib.suppress(ImportError, OSError):
            place.mkdir(parents=True, exist_ok=True)
            import fcntl

            fcntl.flock(stack.enter_context(open(place / f"{stem}.lock", "wb")), fcntl.LOCK_EX)
            locked = True
        yield locked
