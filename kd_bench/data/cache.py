"""Images are decoded once: into one uint8 array a split, in a cache folder, that all processes of a machine share.

An entry is three files named after the data set, the split and a key of its source files: the images and the labels as
``.npy``, and a record with their checksums, written last. All are written under another name and renamed, so that
nobody reads half of one. What fails its checksum is built again. Entries of sources that are gone stay until the user
deletes the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_bench.files import write_json

_VERSION = 1  # to be raised when what is decoded, or how it is kept, changes


@dataclass(frozen=True)
class Decoded:
    """One split, decoded."""

    images: np.ndarray
    """(N, 3, H, W) uint8, C-contiguous."""
    labels: np.ndarray
    """(N, L) int64: a column a kind of label."""
    class_names: tuple[tuple[str, ...], ...]
    """The names of the classes, for each kind of label."""


def folder() -> Path:
    """The cache folder: ``KD_BENCH_CACHE``, else ``kd-bench`` in the user's cache folder."""
    if given := os.environ.get("KD_BENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kd-bench"


def load(name: str, sources: Sequence[Path], decode: Callable[[], Decoded]) -> Decoded:
    """What ``decode`` gives, from the cache if it is there, and put there if it can be.

    Of several processes that want the same entry at once, one decodes and the others wait for it. A cache folder that
    cannot be written or locked is no error: every process then decodes for itself.

    Args:
        name: The entry's name, e.g. "cifar100-train".
        sources: The files that ``decode`` reads; the entry is good as long as their names, sizes and times of change
            are the same.
        decode: Reads them.

    Returns:
        The images as a copy-on-write map of the cache file where there is one.
    """
    place, stem = folder(), f"{name}-{_key(sources)}"
    if found := _read(place, stem):
        return found
    with _alone(place, stem) as locked:
        if found := _read(place, stem):  # built by another process in the meantime
            return found
        decoded = decode()
        if locked:
            _remove_leftovers(place, stem)
        _write(place, stem, decoded)
    return _read(place, stem) or decoded


def _key(sources: Sequence[Path]) -> str:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    return hashlib.blake2b(json.dumps([_VERSION, facts]).encode(), digest_size=8).hexdigest()


def _read(place: Path, stem: str) -> Decoded | None:
    try:
        record = json.loads((place / f"{stem}.json").read_bytes())
        arrays = {}
        for part, checksum in record["crc32"].items():
            path = place / f"{stem}-{part}.npy"
            if _crc32(path) != checksum:
                return None
            # Copy-on-write rather than read-only, because torch wants memory that may be written.
            arrays[part] = np.load(path, mmap_mode="c", allow_pickle=False)
        return Decoded(arrays["images"], arrays["labels"], tuple(tuple(kind) for kind in record["class_names"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # not there, or damaged


def _remove_leftovers(place: Path, stem: str) -> None:
    """Of processes that were killed while writing: whoever holds the lock is the only one at work."""
    with contextlib.suppress(OSError):
        for left in place.glob(f".{stem}*.tmp"):
            left.unlink(missing_ok=True)


def _write(place: Path, stem: str, decoded: Decoded) -> None:
    with contextlib.suppress(OSError):
        checksums = {}
        for part, array in (("images", decoded.images), ("labels", decoded.labels)):
            path = place / f"{stem}-{part}.npy"
            temporary = place / f".{path.name}.{secrets.token_hex(6)}.tmp"
            try:
                with open(temporary, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                checksums[part] = _crc32(temporary)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        write_json(place / f"{stem}.json", {"crc32": checksums, "class_names": decoded.class_names})


def _crc32(path: Path) -> int:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)


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
