"""A cache of a teacher's logits in a file that trials, methods and processes share.

With crop and flip alone an image has few views (162 with four pixels of padding). So a training sees the same views
again and again, and another method with the same seed sees exactly the same views as the one before.

A row of the file is one view's logits and their checksum. A process writes a row when it has computed the logits, and
a row counts only if its checksum fits. So nothing has to be locked, and a kill or a power cut leaves rows that do not
count. The file is sparse: it has its full size from the beginning, and rows that are not written take no space.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from kd_bench.utils.files import disk_bytes, read_json, write_json
from kd_bench.utils.paths import cache_folder, logit_cache_limit

log = logging.getLogger(__name__)

#: Changes when the same teacher gets other last bits, or the format of the file changes.
VERSION = 1

#: Bytes of all files together, unless ``KD_BENCH_LOGITS_GB`` is set, and bytes that must stay free on the disk.
DEFAULT_LIMIT = 16 * 10**9
MIN_FREE_DISK = 5 * 10**9

#: Computes the teacher's logits, (B, K), of (B, C, H, W) images.
ComputeLogits = Callable[[Tensor], Tensor]


class LogitCache:
    """One teacher's logits of one data set's views.

    Cached logits are what the teacher would compute, to the last bit, if an image's logits do not depend on the rest of
    its batch. This is tested before anything is cached: with a batch in other orders, and with parts of a batch. Only
    batch sizes with the same bits are used. If the order changes the bits, the cache is never used.

    Args:
        path: The file. Its record, a JSON file, has the same name.
        key: Everything that the bits depend on, which is also written to the record.
        rows: Number of views of the whole data set.
        classes: K.
        batch_size: B. The cache is not used for batches of other sizes.
        parts: Whether to test if parts of a batch have the same bits as in the whole batch. Then only the missing
            images of a batch are computed.
    """

    def __init__(
        self, path: Path, key: dict[str, Any], rows: int, classes: int, batch_size: int, parts: bool = True
    ) -> None:
        self.path, self.rows, self.classes, self.batch_size = path, rows, classes, batch_size
        self._record = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        _lock(self._file, shared=True)
        os.ftruncate(self._file.fileno(), rows * 4 * (classes + 1))
        record = read_json(self._record)
        if record is None:
            record = {"about": key, "sizes": None}
            write_json(self._record, record)
        self._exact_sizes: list[int] | None = record["sizes"]
        self._seconds_per_image: float = record.get("seconds_an_image", 0.0)
        self._table = np.memmap(path, np.uint32, "r", shape=(rows, classes + 1))
        self._parts, self._cached_seconds = parts, 0.0

    def get(self, views: Tensor, images: Tensor, compute: ComputeLogits) -> Tensor:
        """Returns the teacher's logits of a batch. Missing ones are computed and cached.

        Args:
            views: (B,) int64 on the CPU: the row of each image's view.
            images: (B, C, H, W).
            compute: The teacher.

        Returns:
            (B, K) float32.
        """
        if len(views) != self.batch_size or self._file is None:
            return compute(images)
        rows = views.numpy()
        logits, is_written = self._read(rows)
        computed = 0
        if not is_written.all():
            missing = np.flatnonzero(~is_written)
            sizes = self._find_exact_sizes(images, compute)
            if not sizes:
                return compute(images)
            computed = next(size for size in sizes if size >= len(missing))
            chosen = missing if computed < self.batch_size else np.arange(self.batch_size)
            padded = np.concatenate([chosen, np.flatnonzero(is_written)[: computed - len(chosen)]])
            whole = computed == self.batch_size
            chosen_images = images if whole else images[torch.from_numpy(padded).to(images.device)]
            logits[chosen] = compute(chosen_images)[: len(chosen)].cpu().numpy()
            self._write(rows[missing], logits[missing])
        self._cached_seconds += (len(rows) - computed) * self._seconds_per_image
        return torch.from_numpy(logits).to(images.device)

    def add(self, views: Tensor, images: Tensor, logits: Tensor, compute: ComputeLogits) -> None:
        """Caches logits that the teacher has computed together with other outputs.

        Args:
            views, images, compute: As for ``get``.
            logits: (B, K), the teacher's for these images.
        """
        if len(views) == self.batch_size and self._file is not None and self._find_exact_sizes(images, compute):
            rows = views.numpy()
            _, is_written = self._read(rows)
            self._write(rows[~is_written], logits.cpu().numpy()[~is_written])

    def cached_seconds(self) -> float:
        """Returns the seconds that the teacher would have needed for the cached logits read since the last call."""
        seconds, self._cached_seconds = self._cached_seconds, 0.0
        return seconds

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.utime(self._record)  # the file that was used last is removed last
            self._file.close()
            self._file = None

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (B, K) float32 logits and (B,) bool: whether they are known."""
        table_rows = self._table[rows]
        values = np.ascontiguousarray(table_rows[:, :-1])
        checksums = np.fromiter(map(_checksum, values, rows), np.uint32, len(rows))
        return values.view(np.float32), checksums == table_rows[:, -1]

    def _write(self, rows: np.ndarray, logits: np.ndarray) -> None:
        # Not through the memory map: there a full disk would end the process.
        assert self._file is not None
        try:
            for row, values in zip(rows, np.ascontiguousarray(logits, np.float32).view(np.uint32), strict=True):
                content = values.tobytes() + np.uint32(_checksum(values, row)).tobytes()
                _write_at(self._file.fileno(), content, int(row) * len(content))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: %s; training continues without the logit cache", self.path, error.strerror)
        self.close()

    @torch.no_grad()
    def _find_exact_sizes(self, images: Tensor, compute: ComputeLogits) -> list[int]:
        """Returns the batch sizes, rising, with which images have the same bits as in a whole batch.

        Tests them once for each file, with the teacher, and writes them to the record.
        """
        if self._exact_sizes is None:
            whole = compute(images)
            begin = time.perf_counter()
            compute(images)
            self._seconds_per_image = (time.perf_counter() - begin) / len(images)
            self._exact_sizes = []
            orders = (torch.arange(self.batch_size).flip(0), torch.arange(self.batch_size).roll(self.batch_size // 3))
            if all(torch.equal(compute(images[order]), whole[order]) for order in orders):
                sizes = [self.batch_size * eighths // 8 for eighths in (1, 2, 3, 4, 6)] if self._parts else []
                self._exact_sizes = [
                    size
                    for size in sizes
                    if size >= 4
                    and torch.equal(compute(images[:size]), whole[:size])
                    and torch.equal(compute(images[-size:]), whole[-size:])
                ]
                self._exact_sizes.append(self.batch_size)
            results = {"sizes": self._exact_sizes, "seconds_an_image": self._seconds_per_image}
            try:
                write_json(self._record, (read_json(self._record) or {}) | results)
            except OSError as error:
                self._give_up(error)
                self._exact_sizes = []
        return self._exact_sizes


def _checksum(values: np.ndarray, row: int) -> int:
    """Returns a checksum that is never 0, which is the content of rows that are not written."""
    return zlib.crc32(values.tobytes(), int(row) & 0xFFFFFFFF) or 1


def _write_at(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def open_cache(
    folder: Path,
    key: dict[str, Any],
    rows: int,
    classes: int,
    batch_size: int,
    limit: int | None = None,
    parts: bool = True,
    kind: type[LogitCache] = LogitCache,
) -> LogitCache | None:
    """Opens the cache for a teacher and a data set.

    If there is no space for a new file, files that are not in use are removed, those unused for longest first.

    Args:
        folder: Folder of all caches.
        key, rows, classes, batch_size, parts: As for ``LogitCache``.
        limit: Bytes of all files together; 0 for no cache, None for ``size_limit()``.
        kind: The class of the cache.

    Returns:
        None if there is no space, or the platform cannot share files in this way.
    """
    limit = size_limit() if limit is None else limit
    size = rows * 4 * (classes + 1)
    key = key | {"version": VERSION, "batch_size": batch_size, "shape": [rows, classes]}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}.logits"
    # Windows lacks the call that writes at an offset.
    if size > limit or batch_size < 2 or not hasattr(os, "pwrite"):
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [file for file in list_files(folder) if file.path != path]
        total = sum(file.full_bytes for file in others)
        for file in sorted(others, key=lambda file: file.last_used):
            if total + size <= limit:
                break
            total -= file.full_bytes if remove_file(file) else 0
        present = disk_bytes(path) if path.exists() else 0
        if total + size > limit or shutil.disk_usage(folder).free < size - present + MIN_FREE_DISK:
            log.info("%s: no space for %.1f GB of a teacher's logits, so they are not cached", folder, size / 1e9)
            return None
        return kind(path, key, rows, classes, batch_size, parts)
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: the teacher's logits are not cached (%s)", path, error)
        return None


def size_limit() -> int:
    """Returns the bytes of all files together: ``KD_BENCH_LOGITS_GB``, or 16 GB."""
    limit = logit_cache_limit()
    return DEFAULT_LIMIT if limit is None else limit


@dataclass(frozen=True)
class LogitFile:
    """The file of one cache."""

    path: Path
    key: dict[str, Any]
    disk_bytes: int
    """Bytes on the disk."""
    full_bytes: int
    """Bytes with the logits of all views."""
    last_used: float
    """Time in seconds since 1970."""


def logits_folder() -> Path:
    """Returns the folder of all caches."""
    return cache_folder() / "logits"


def list_files(folder: Path) -> list[LogitFile]:
    """Returns the caches in a folder."""
    files = []
    for path in sorted(folder.glob("*.logits")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = path.with_suffix(".json")
            stat = path.stat()
            key = (read_json(record) or {"about": {}})["about"]
            last_used = max(stat.st_mtime, record.stat().st_mtime if record.exists() else 0.0)
            files.append(LogitFile(path, key, disk_bytes(path), stat.st_size, last_used))
    return files


def remove_file(file: LogitFile) -> bool:
    """Removes a cache. Returns False if a process uses it."""
    with contextlib.suppress(OSError), open(file.path, "rb") as content:
        if _lock(content, shared=False):
            file.path.unlink(missing_ok=True)
            file.path.with_suffix(".json").unlink(missing_ok=True)
            return True
    return False


def _lock(file: BinaryIO, shared: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
