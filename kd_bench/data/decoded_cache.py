"""Cache of decoded images: one uint8 array per split, in a cache folder that all processes of a machine share.

An entry is four files named after the data set, the split and a key of its source: the images, the labels and a digest
of each image as ``.npy``, and a record with their checksums, written last. The decoder writes straight into the file of
the images, so that they are never in memory twice. All files are written under another name and renamed, so no process
reads half of one. An entry that fails its checksum is built again; entries of earlier versions get their digests when
they are read. Entries of sources that are gone stay until the user deletes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kd_bench.data.fingerprint import Fingerprint, fingerprint
from kd_bench.data.image_digest import digest_each
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import disk_bytes, file_lock, write_atomic, write_json
from kd_bench.utils.memory import usable_memory
from kd_bench.utils.paths import cache_folder

_VERSION = 2  # to be raised when the content of entries, or their format, changes
_BLOCK = 1 << 20
_COPIES = "corrupted"  # folder of the corrupted copies of sets
_MOST_BLOCKS = 256  # checked per file: at 4 GB/s this delays a start by less than 0.1 s

#: Returns a uint8 array of this shape for the decoder to write the images into; to be called once.
Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """One split, decoded."""

    images: np.ndarray
    """(N, 3, H, W) uint8, C-contiguous."""
    labels: np.ndarray
    """(N, L) int64: one column for each kind of label."""
    class_names: tuple[tuple[str, ...], ...]
    """Names of the classes, for each kind of label; none if the source has none."""
    digests: np.ndarray | None = None
    """(N, 16) uint8: digests of the images. ``load`` computes them if ``decode`` leaves them out."""


def file_fingerprint(files: Sequence[Path]) -> Fingerprint:
    """Returns names, sizes and times of change of files, by which the cache notices that they have changed.

    Raises:
        UserError: As ``fingerprint``.
    """
    return fingerprint(files, "st_size", "st_mtime_ns")


def load(name: str, source: object, decode: Callable[[Allocate], Decoded], folder: Path | None = None) -> Decoded:
    """Returns the result of ``decode``, from the cache if possible, and writes it to the cache if possible.

    Of several processes that need the same entry at once, one decodes and the others wait for it. A cache folder that
    cannot be written or locked is no error: then every process decodes for itself, into its memory.

    Args:
        name: The entry's name, e.g. "cifar100-train".
        source: All that the images depend on, for JSON, e.g. ``file_fingerprint``; another value is another entry.
        decode: Writes the images into the array that it asks for, and returns that array with the rest.
        folder: Folder of the entry, from ``set_folder``; None for the cache folder.

    Returns:
        The images as a copy-on-write map of the cache file, if there is one.

    Raises:
        UserError: There is no room for the images in the folder, nor in memory.
    """
    folder, stem = folder or cache_folder(), f"{name}-{_key(source)}"
    if cached := _read(folder, stem):
        return _with_digests(folder, stem, cached)
    with file_lock(folder / f"{stem}.lock") as locked:
        if cached := _read(folder, stem):  # built by another process in the meantime
            return _with_digests(folder, stem, cached)
        if locked:  # so no other process writes, and these files are of processes that were killed while writing
            with contextlib.suppress(OSError):
                for leftover in folder.glob(f".{stem}*.tmp"):
                    leftover.unlink(missing_ok=True)
        images = folder / f".{stem}-images.npy.{secrets.token_hex(6)}.tmp"
        try:
            decoded = decode(lambda shape: _allocate(images, shape))
            if decoded.digests is None:  # computed here, because the file is mapped a second time when it is read
                decoded = replace(decoded, digests=digest_each(decoded.images))
            if isinstance(decoded.images, np.memmap):
                _write(folder, stem, images, decoded)
        finally:
            with contextlib.suppress(OSError):
                images.unlink(missing_ok=True)
    return _read(folder, stem) or decoded


def set_folder(name: str, source: object) -> Path:
    """Returns the folder in the cache folder of the corrupted copies of a set, whose entries are shown as one.

    Args:
        name: Name of the set.
        source: As in ``load``.
    """
    return cache_folder() / _COPIES / f"{name}-{_key(source)}"


def _key(source: object) -> str:
    return hashlib.blake2b(json.dumps([_VERSION, source]).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class CacheEntry:
    """One decoded split in a cache folder, or the corrupted copies of one."""

    name: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(map(disk_bytes, self.files))

    @property
    def used(self) -> float:
        """Time of the last use, in seconds since 1970."""
        return max(file.stat().st_atime for file in self.files)

    def remove(self) -> None:
        """Removes its files."""
        for file in self.files:
            file.unlink(missing_ok=True)


def entries(folder: Path) -> list[CacheEntry]:
    """Returns the decoded splits of a cache folder, and the corrupted copies."""
    entries = []
    for record in sorted(folder.glob("*.json")):
        images, labels, digests = (_part(folder, record.stem, part) for part in ("images", "labels", "digests"))
        if images.is_file() and labels.is_file():
            optional = [digests] if digests.is_file() else []
            entries.append(CacheEntry(record.stem, (record, images, labels, *optional)))
    for copies in sorted((folder / _COPIES).glob("*")):
        files = tuple(file for file in sorted(copies.glob("*")) if file.is_file())
        if files:
            entries.append(CacheEntry(f"{copies.name}, corrupted", files))
    return entries


def _part(folder: Path, stem: str, part: str) -> Path:
    return folder / f"{stem}-{part}.npy"


def _read(folder: Path, stem: str) -> Decoded | None:
    try:
        record = json.loads((folder / f"{stem}.json").read_bytes())
        arrays = {}
        for part, checksum in record["checksums"].items():
            arrays[part] = _read_part(_part(folder, stem, part), checksum)
        images, labels, digests = arrays["images"], arrays["labels"], arrays.get("digests")
        if images is None or labels is None:
            return None
        return Decoded(images, labels, tuple(tuple(kind) for kind in record["class_names"]), digests)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # missing or damaged


def _read_part(path: Path, checksum: object) -> np.ndarray | None:
    """Returns the array in a file; None if the file is missing or damaged."""
    try:
        # Copy-on-write rather than read-only, because torch requires writable memory.
        return np.load(path, mmap_mode="c", allow_pickle=False) if _checksum(path) == checksum else None
    except (OSError, ValueError):
        return None


def _with_digests(folder: Path, stem: str, decoded: Decoded) -> Decoded:
    """Returns the split with the digests of its images. Computes them and adds them to the entry, if it has none."""
    if decoded.digests is not None:
        return decoded
    digests = digest_each(decoded.images)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        record = json.loads((folder / f"{stem}.json").read_bytes())
        record["checksums"]["digests"] = _save(_part(folder, stem, "digests"), digests)
        write_json(folder / f"{stem}.json", record)
    return replace(decoded, digests=digests)


def _checksum(path: Path) -> list[int]:
    """Returns size and CRC-32: of the whole file if it is not large, else of blocks spread evenly over it.

    That detects a file that was cut short, not wholly written or overwritten, but maybe not a flipped bit in many GB,
    which does no harm to a training.
    """
    buffer, crc = bytearray(_BLOCK), 0
    with open(path, "rb", buffering=0) as file:
        size = path.stat().st_size
        blocks = math.ceil(size / _BLOCK)
        for number in range(count := min(blocks, _MOST_BLOCKS)):
            file.seek(number * (blocks - 1) // max(count - 1, 1) * _BLOCK)
            crc = zlib.crc32(memoryview(buffer)[: file.readinto(buffer)], crc)
    return [size, crc]


def _allocate(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array in a new file, or in memory if the file cannot be written."""
    size = math.prod(shape)
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        # Without blocks on the disk, a full disk would kill the process instead of raising an error.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError("no space left on device")
        return array
    except (OSError, OverflowError) as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if size > 0.8 * usable_memory().available:
            raise UserError(
                f"{path.parent}: {size / 2**30:.1f} GiB of decoded images fit neither there ({error}) nor in memory; "
                "name a folder with more room in KD_BENCH_CACHE"
            ) from error
        return np.empty(shape, np.uint8)


def _write(folder: Path, stem: str, images: Path, decoded: Decoded) -> None:
    with contextlib.suppress(OSError):
        decoded.images.flush()  # type: ignore[attr-defined]  # load() has checked that it is a map
        labels = _save(_part(folder, stem, "labels"), decoded.labels)
        os.replace(images, _part(folder, stem, "images"))
        checksums = {"images": _checksum(_part(folder, stem, "images")), "labels": labels}
        if decoded.digests is not None:
            checksums["digests"] = _save(_part(folder, stem, "digests"), decoded.digests)
        write_json(folder / f"{stem}.json", {"checksums": checksums, "class_names": decoded.class_names})


def _save(path: Path, array: np.ndarray) -> list[int]:
    """Writes an array and returns the file's checksum."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomic(path, content.getvalue())
    return _checksum(path)
