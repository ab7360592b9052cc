"""A teacher's logits of views that it has seen, in a file that trials, methods and processes share.

With crop and flip alone an image has few views (162 with four pixels of padding), so a training sees the same ones
again and again, and another method with the same seed sees exactly those of the one before.

A row of the file is one view's logits and their checksum. It is written once the logits are known, by whoever knows
them, and counts only where the checksum fits: nothing has to be locked, and a kill, or a power cut, leaves rows that do
not count. The file has its full size from the beginning, with holes for what is not yet known, which take no room.
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
from kd_bench.utils.paths import cache_folder

log = logging.getLogger(__name__)

#: Raised whenever the same teacher begins to put out other last bits, or rows are kept otherwise.
VERSION = 1

#: Bytes that all files may take together, unless ``KD_BENCH_LOGITS_GB`` says otherwise, and that the disk keeps free.
LIMIT = 16 * 10**9
SPARE = 5 * 10**9

#: Gives the teacher's logits, (B, K), for (B, C, H, W) images.
Compute = Callable[[Tensor], Tensor]


class LogitCache:
    """One teacher's logits for one data set's views, as they come in batches of one size.

    What comes out of the file is what the teacher would put out, to the last bit, as long as an image's logits do not
    depend on the rest of its batch. That is not taken for granted: before anything is kept, it is seen whether a batch
    in another order, and parts of a batch, have the same bits. Only sizes for which they have are ever used, and where
    the order changes bits the file is never used at all.

    Args:
        path: The file, whose record lies beside it.
        about: All that the bits depend on; kept for people and compared.
        rows: Views of the whole set.
        classes: K.
        batch_size: B. Other batches go through the teacher as they would without the file.
        parts: Whether to try if parts of a batch have the bits of the whole, so that only what is missing of one need
            be computed.
    """

    def __init__(
        self, path: Path, about: dict[str, Any], rows: int, classes: int, batch_size: int, parts: bool = True
    ) -> None:
        self.path, self.rows, self.classes, self.batch_size = path, rows, classes, batch_size
        self._record = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        _lock(self._file, shared=True)
        os.ftruncate(self._file.fileno(), rows * 4 * (classes + 1))
        if not self._record.exists():
            write_json(self._record, {"about": about, "sizes": None})
        record = read_json(self._record)
        self._sizes: list[int] | None = record["sizes"]
        self._seconds: float = record.get("seconds_an_image", 0.0)
        self._table = np.memmap(path, np.uint32, "r", shape=(rows, classes + 1))
        self._parts, self._spared = parts, 0.0

    def of(self, views: Tensor, images: Tensor, compute: Compute) -> Tensor:
        """The teacher's logits for a batch, from the file as far as they are there.

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
        values, known = self._read(rows)
        passed = 0
        if not known.all():
            missing = np.flatnonzero(~known)
            sizes = self._exact_sizes(images, compute)
            if not sizes:
                return compute(images)
            size = next(size for size in sizes if size >= len(missing))
            chosen = missing if size < self.batch_size else np.arange(self.batch_size)
            padded = np.concatenate([chosen, np.flatnonzero(known)[: size - len(chosen)]])
            chosen_images = images if size == self.batch_size else images[torch.from_numpy(padded).to(images.device)]
            values[chosen] = compute(chosen_images)[: len(chosen)].cpu().numpy()
            self._write(rows[missing], values[missing])
            passed = size
        self._spared += (len(rows) - passed) * self._seconds
        return torch.from_numpy(values).to(images.device)

    def learn(self, views: Tensor, images: Tensor, logits: Tensor, compute: Compute) -> None:
        """Keeps logits that the teacher has put out anyway.

        Args:
            views: As for ``of``.
            images: As for ``of``.
            logits: (B, K), the teacher's for these images.
            compute: The teacher.
        """
        if len(views) == self.batch_size and self._file is not None and self._exact_sizes(images, compute):
            rows = views.numpy()
            _, known = self._read(rows)
            self._write(rows[~known], logits.cpu().numpy()[~known])

    def cached_seconds(self) -> float:
        """Seconds that the teacher would have needed for what was found, since the last time that this was asked."""
        spared, self._spared = self._spared, 0.0
        return spared

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.utime(self._record)  # what was used last is the last to go
            self._file.close()
            self._file = None

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._table[rows]
        values = np.ascontiguousarray(found[:, :-1])
        sums = np.fromiter(map(_checksum, values, rows), np.uint32, len(rows))
        return values.view(np.float32), sums == found[:, -1]

    def _write(self, rows: np.ndarray, values: np.ndarray) -> None:
        # By calls and not through the map, where a full disk would end the process.
        assert self._file is not None
        try:
            for row, value in zip(rows, np.ascontiguousarray(values, np.float32).view(np.uint32), strict=True):
                content = value.tobytes() + np.uint32(_checksum(value, row)).tobytes()
                _write_at(self._file.fileno(), content, int(row) * len(content))
        except OSError as error:
            log.warning("%s: %s; the teacher goes on without it", self.path, error.strerror)
            self.close()

    @torch.no_grad()
    def _exact_sizes(self, images: Tensor, compute: Compute) -> list[int]:
        """Numbers of images, rising, that may pass the teacher at once for the bits of a whole batch."""
        if self._sizes is None:
            whole = compute(images)
            begin = time.perf_counter()
            compute(images)
            self._seconds = (time.perf_counter() - begin) / len(images)
            self._sizes = []
            orders = (torch.arange(self.batch_size).flip(0), torch.arange(self.batch_size).roll(self.batch_size // 3))
            if all(torch.equal(compute(images[order]), whole[order]) for order in orders):
                parts = [self.batch_size * eighths // 8 for eighths in (1, 2, 3, 4, 6)] if self._parts else []
                self._sizes = [size for size in parts if size >= 4 and self._same(images, whole, size, compute)]
                self._sizes.append(self.batch_size)
            found = {"sizes": self._sizes, "seconds_an_image": self._seconds}
            write_json(self._record, (read_json(self._record) or {}) | found)
        return self._sizes

    @staticmethod
    def _same(images: Tensor, whole: Tensor, size: int, compute: Compute) -> bool:
        ends = (slice(0, size), slice(len(images) - size, None))
        return all(torch.equal(compute(images[end]), whole[end]) for end in ends)


def _checksum(values: np.ndarray, row: int) -> int:
    """Never 0, which is what holes are full of."""
    return zlib.crc32(values.tobytes(), int(row) & 0xFFFFFFFF) or 1


def _write_at(file: int, content: bytes, place: int) -> None:
    while content:
        done = os.pwrite(file, content, place)
        content, place = content[done:], place + done


def open_store(
    place: Path,
    about: dict[str, Any],
    rows: int,
    classes: int,
    batch_size: int,
    limit: int | None = None,
    parts: bool = True,
) -> LogitCache | None:
    """The store for a teacher and a set; None where there is no room, or no way to share files.

    Files that were not used for the longest time, and are not in use, make room for a new one.

    Args:
        place: The folder of all of them.
        about: All that the bits of the logits depend on.
        rows: Views of the whole set.
        classes: K.
        batch_size: B.
        limit: Bytes of all files together; by default ``KD_BENCH_LOGITS_GB``, or 16 GB. 0 for no store.
        parts: As for ``Logits``.
    """
    limit = allowed() if limit is None else limit
    size = rows * 4 * (classes + 1)
    about = about | {"version": VERSION, "batch_size": batch_size, "shape": [rows, classes]}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = place / f"{name}.logits"
    # A row is written at its place, which takes a call that Windows does not have.
    if size > limit or batch_size < 2 or not hasattr(os, "pwrite"):
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
        others = [one for one in entries(place) if one.path != path]
        taken = sum(one.full for one in others)
        for one in sorted(others, key=lambda one: one.used):
            if taken + size <= limit:
                break
            taken -= one.full if remove(one) else 0
        here = disk_bytes(path) if path.exists() else 0
        if taken + size > limit or shutil.disk_usage(place).free < size - here + SPARE:
            log.info("%s: no room for %.1f GB of a teacher's logits, so they are not kept", place, size / 1e9)
            return None
        store = LogitCache(path, about, rows, classes, batch_size, parts)
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: the teacher's logits are not kept (%s)", path, error)
        return None
    return store


def allowed() -> int:
    """Bytes that all files may take together."""
    try:
        return int(float(os.environ["KD_BENCH_LOGITS_GB"]) * 10**9)
    except (KeyError, ValueError):
        return LIMIT


@dataclass(frozen=True)
class LogitFile:
    """One file of logits."""

    path: Path
    about: dict[str, Any]
    size: int
    """Bytes that it takes on the disk."""
    full: int
    """Bytes that it would take with all views."""
    used: float
    """When it was last used, in seconds since 1970."""


def folder() -> Path:
    """Where they are kept."""
    return cache_folder() / "logits"


def entries(place: Path) -> list[LogitFile]:
    """The files of a folder."""
    found = []
    for path in sorted(place.glob("*.logits")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = path.with_suffix(".json")
            stat = path.stat()
            about = (read_json(record) or {"about": {}})["about"]
            used = record.stat().st_mtime if record.exists() else stat.st_mtime
            found.append(LogitFile(path, about, disk_bytes(path), stat.st_size, max(used, stat.st_mtime)))
    return found


def remove(entry: LogitFile) -> bool:
    """Removes a file of logits; False where somebody uses it."""
    with contextlib.suppress(OSError), open(entry.path, "rb") as file:
        if _lock(file, shared=False):
            entry.path.unlink(missing_ok=True)
            entry.path.with_suffix(".json").unlink(missing_ok=True)
            return True
    return False


def _lock(file: BinaryIO, shared: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
