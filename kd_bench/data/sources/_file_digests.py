"""Digests of image files that are decoded when they are needed, from their names and sizes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from kd_bench.data.image_digest import digest_texts
from kd_bench.data.sources import _find_files
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import cache_folder

if TYPE_CHECKING:
    from kd_bench.data.file_dataset import Files

_VERSION = 1  # of the cached digests; to be raised when their content changes
_THREADS = 16  # for sizes on a network's file system, where an answer takes about a millisecond
_CHUNK = 1024  # files that a thread looks at before it takes others


def file_digests(files: Files) -> np.ndarray:
    """Returns a digest of the name and size of each file, from the cache if the folders have not changed.

    A name counts without folders and suffix, so that the same images have the same digests in folders and in shards. A
    file overwritten in place is not noticed, as by ``_find_files.folder_fingerprint``.

    Returns:
        (N, 16) uint8.

    Raises:
        UserError: A file is missing.
    """
    state = json.dumps([_VERSION, _find_files.folder_fingerprint(files.folders)]).encode()
    key = hashlib.blake2b(state, digest_size=16)
    for array in (files.names, files.classes):
        key.update(np.ascontiguousarray(array).tobytes())
    path = cache_folder() / "file-digests" / f"{key.hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached = np.load(path, allow_pickle=False)
        if cached.shape == (len(files), 16) and cached.dtype == np.uint8:
            return cached
    sizes = files.sizes().tolist()
    names = [bytes(name).rpartition(b"/")[2].partition(b".")[0] for name in files.names]
    digests = digest_texts([b"%d %s" % content for content in zip(sizes, names, strict=True)])
    content = io.BytesIO()
    np.save(content, digests, allow_pickle=False)
    with contextlib.suppress(OSError):  # without the cache, the next start asks for the sizes again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    return digests


def file_sizes(paths: Sequence[str]) -> np.ndarray:
    """Returns the sizes of files in bytes: (N,) int64. Raises a UserError if one cannot be found."""

    def sizes(start: int) -> list[int]:
        return [os.stat(path).st_size for path in paths[start : start + _CHUNK]]  # noqa: PTH116

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return np.array([size for chunk in pool.map(sizes, range(0, len(paths), _CHUNK)) for size in chunk])
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
