"""Files of generated images: their checksums and headers, and images that stay in the file. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from kd_bench.data.fingerprint import fingerprint
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import read_json, sha256, write_json
from kd_bench.utils.paths import cache_folder

#: Bytes (a tenth of a second's work) from which a checksum is kept in the cache: every command that plans a recipe
#: needs it, and the 50 million images of Wang et al. (2023) are 154 GB.
LARGE = 10**8

#: Length of a zip entry's header without the name and the extra field, and the position of their lengths in it.
_ENTRY_HEADER, _LENGTHS = 30, 26

#: What numpy and zipfile raise for damaged files.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError, SyntaxError,
               RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """An array in an archive, as its headers describe it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int | None
    """Position of the first value in the file; None if the array is compressed or not in C order."""


def checksum(file: Path) -> str:
    """Returns the SHA-256 of a file; that of a large one is read from the cache if the file has not changed since.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if file.stat().st_size < LARGE:
            return sha256(file)
        state = [str(file.resolve()), *fingerprint([file], "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")]
        name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
        cached = cache_folder() / "checksums" / f"{name}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            kept_digest = read_json(cached)["sha256"]
            if re.fullmatch("[0-9a-f]{64}", kept_digest):
                return str(kept_digest)
        digest = sha256(file)
        with suppress(OSError):  # without the cache, the next command reads the file again
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_json(cached, {"file": str(file), "sha256": digest})
        return digest
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def check_arrays(file: Path, size: int) -> None:
    """Checks the shapes and types of a file's arrays by their headers.

    Args:
        file: An ``.npz`` with ``image``, (M, size, size, 3) uint8, and ``label``, (M,) whole numbers.
        size: Height and width of the images in pixels.

    Raises:
        UserError: One is missing or does not fit, or the file cannot be read.
    """
    entries = _read_entries(file)
    images, labels = entries["image"], entries["label"]
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[1:] != (size, size, 3):
        raise UserError(
            f"{file}: image should be (N, {size}, {size}, 3) of uint8, not {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{file}: label should be ({images.shape[0]},) whole numbers, not {labels.shape} of {labels.dtype}"
        )


def read_arrays(file: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns the images and labels of a file that ``check_arrays`` accepts.

    Images that are not compressed (``numpy.savez``) stay in the file: the array is mapped to it and cannot be written.
    Compressed ones are read into memory.

    Raises:
        UserError: The file cannot be read.
    """
    entry = _read_entries(file)["image"]
    try:
        with np.load(file, allow_pickle=False) as archive:
            labels = archive["label"]
            if entry.start is None:
                return archive["image"], labels
        with open(file, "rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(content, "madvise"):
            content.madvise(mmap.MADV_RANDOM)  # otherwise each image of 3 KB makes the system read 128 KB
        values = np.frombuffer(content, np.uint8, math.prod(entry.shape), entry.start)
        return values.reshape(entry.shape), labels
    except _UNREADABLE as error:
        raise _unreadable(file, error) from None


def _read_entries(file: Path) -> dict[str, _Entry]:
    """Returns the entries ``image`` and ``label`` of an archive."""
    try:
        with open(file, "rb") as opened, zipfile.ZipFile(opened) as archive:
            if not {"image.npy", "label.npy"} <= set(archive.namelist()):
                raise UserError(f"{file}: should be an .npz with the arrays image and label")
            return {name: _read_entry(opened, archive, f"{name}.npy") for name in ("image", "label")}
    except _UNREADABLE as error:
        raise _unreadable(file, error) from None


def _read_entry(opened: IO[bytes], archive: zipfile.ZipFile, name: str) -> _Entry:
    """Reads the header of an array. Raises a ValueError if it is damaged."""
    info = archive.getinfo(name)
    with archive.open(info) as array:
        version = npy.read_magic(array)
        if version not in {(1, 0), (2, 0)}:
            raise ValueError(f"{name} has version {version[0]}.{version[1]} of numpy's format, not 1.0 or 2.0")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, in_fortran_order, dtype = read_header(array)
        header = array.tell()
    if info.compress_type != zipfile.ZIP_STORED or in_fortran_order:
        return _Entry(shape, dtype, None)
    if info.file_size != header + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has not the length that its header says")
    opened.seek(info.header_offset + _LENGTHS)
    lengths = opened.read(_ENTRY_HEADER - _LENGTHS)
    name_and_extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return _Entry(shape, dtype, info.header_offset + _ENTRY_HEADER + name_and_extra + header)


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: cannot be read as .npz: {error}")
