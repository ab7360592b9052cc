"""Makes the corrupted copies of a test set with the package ``imagecorruptions-imaug``.

The draws of an image depend on nothing but the corruption, the severity and the image's index in the test set, so that
its pixels are the same however many images are made at a time, in however many processes, before or after a kill. A
copy that was made is kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
import multiprocessing
import os
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES, Source
from kd_bench.data import decoded_cache
from kd_bench.data.corrupted import CorruptedCopy, Progress, digest_of
from kd_bench.data.decoded_cache import Allocate, Decoded
from kd_bench.utils import seeding
from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.errors import RunFailed, first_line, install_command
from kd_bench.utils.files import disk_bytes
from kd_bench.utils.paths import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

PACKAGE = "imagecorruptions-imaug"

#: Height and width in pixels that the package needs at least.
LEAST_SIZE = 32

#: Packages whose code computes the pixels.
_LIBRARIES = ("numba", "numpy", "opencv-python", "pillow", "scikit-image", "scipy")

#: Corruptions that do not draw from NumPy's global generator, but from one that a seed is given to.
_SEEDED = ("impulse_noise", "glass_blur")

#: Images that a process makes at a time.
_CHUNK = 64

#: Processes at most; more wait for each other's start.
_MOST_WORKERS = 16

#: Share of the free space of the cache's disk that the copies of a test set may take.
_SHARE_OF_DISK = 0.5


@dataclass(frozen=True)
class MadeCorruptions:
    """Copies of test images that are made when they are needed.

    Attributes:
        name: Name of the data set.
        test_images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        version: Version of the package.
        libraries: Versions of the libraries that compute the pixels, by name.
        workers: Processes that make images; 0 for this one.
    """

    source: ClassVar[Source] = "made"

    name: str
    test_images: Tensor
    labels: Tensor
    version: str
    libraries: Mapping[str, str]
    workers: int

    @property
    def origin(self) -> str:
        """The package and its version."""
        return f"{PACKAGE} {self.version}"

    @cached_property
    def _images_digest(self) -> str:
        from kd_bench.data.image_digest import digest_each

        return digest_of(digest_each(self.test_images.contiguous().numpy()))

    @property
    def _identity(self) -> list[Any]:
        """All that the pixels of the copies depend on."""
        return [self._images_digest, list(self.test_images.shape), self.version, sorted(self.libraries.items())]

    @cached_property
    def folder(self) -> Path | None:
        """The folder in the cache that keeps the copies; None if they would take too much of the disk."""
        folder = decoded_cache.set_folder(self.name, self._identity)
        needed = self.test_images.numel() * len(CORRUPTIONS) * len(SEVERITIES)
        with contextlib.suppress(OSError):
            needed -= sum(map(disk_bytes, folder.glob("*.npy")))
            existing = next(path for path in (cache_folder(), *cache_folder().parents) if path.exists())
            if needed > _SHARE_OF_DISK * shutil.disk_usage(existing).free:
                return None
        return folder

    def copy(self, corruption: str, severity: int, progress: Progress | None = None) -> CorruptedCopy:
        """Returns the images under a corruption at a severity from 1 to 5, from the cache if they are there.

        Raises:
            UserError: If there is no room for them in the cache folder, nor in memory.
            RunFailed: If the package fails.
        """
        import torch

        from kd_bench.data.image_digest import digest_each

        def make(allocate: Allocate) -> Decoded:
            images = allocate(tuple(self.test_images.shape))
            first = 0
            chunks = self._chunks(corruption, severity)
            total = math.ceil(len(images) / _CHUNK)
            for number, chunk in enumerate(chunks, 1):
                images[first : first + len(chunk)] = chunk
                first += len(chunk)
                if progress is not None:
                    progress(number, total)
            return Decoded(images, np.empty((len(images), 0), np.int64), ())

        if self.folder is None:
            copies = make(lambda shape: np.empty(shape, np.uint8))
        else:
            copies = decoded_cache.load(f"{corruption}-{severity}", self._identity, make, self.folder)
        digests = digest_each(copies.images) if copies.digests is None else copies.digests
        return CorruptedCopy(torch.from_numpy(copies.images), digest_of(digests))

    def _chunks(self, corruption: str, severity: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yields the corrupted images in their order, some at a time: (n, 3, H, W) uint8."""
        images = self.test_images.numpy()
        chunks = [
            (images[first : first + _CHUNK], corruption, severity, first) for first in range(0, len(images), _CHUNK)
        ]
        if self.workers == 0 or len(chunks) == 1:
            yield from (corrupt(*chunk) for chunk in chunks)
            return
        futures = [self._pool.submit(corrupt, *chunk) for chunk in chunks]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool:
            raise RunFailed(f"{PACKAGE}: a process that made images with {corruption} was killed") from None
        finally:
            for future in futures:
                future.cancel()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """The processes. They are no forks, in which libraries with threads may wait for ever."""
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, spawn, initializer=_begin_worker)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the main process, and ends this one when the main one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def find_made(dataset: Dataset, images: ArrayDataset | FileDataset) -> MadeCorruptions | str:
    """Returns the copies of a test set that can be made, or why none can, as the end of a sentence."""
    from kd_bench.data.array_dataset import ArrayDataset

    if not isinstance(images, ArrayDataset):
        return (
            f"the images of {dataset.title} are decoded when they are needed, and only images in memory are corrupted"
        )
    size = images.image_shape[-1]
    if size < LEAST_SIZE:
        return f"{PACKAGE} needs images of at least {LEAST_SIZE} pixels, and those of {dataset.title} have {size}"
    installed = _installed()
    if isinstance(installed, str):
        return installed
    version, libraries = installed
    cores = usable_cores()
    workers = min(cores, _MOST_WORKERS) if cores > 1 else 0
    return MadeCorruptions(dataset.name, images.test_images, images.test_labels, version, libraries, workers)


@cache
def _installed() -> tuple[str, Mapping[str, str]] | str:
    """Returns the version of the package and of its libraries, or why it cannot be used."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"they need the package {PACKAGE}; install it with: {install_command('corruptions')}"
    try:
        import imagecorruptions  # noqa: F401  # the workers import it, and their errors would come with a traceback
    except Exception as error:  # a library may lack others of the system, as opencv-python lacks libGL
        return f"the package {PACKAGE} cannot be imported: {first_line(error)}"
    libraries = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            libraries[name] = importlib.metadata.version(name)
    return version, libraries


def corrupt(images: np.ndarray[Any, Any], corruption: str, severity: int, first: int = 0) -> np.ndarray[Any, Any]:
    """Returns corrupted copies of images. The global generators are as before.

    Args:
        images: (n, 3, H, W) uint8.
        corruption: Name from ``kd_bench.config.corruptions.CORRUPTIONS``.
        severity: From 1 to 5.
        first: Index of the first image in the test set; the others follow. It determines the draws.

    Returns:
        (n, 3, H, W) uint8.

    Raises:
        RunFailed: If the package fails.
    """
    import cv2
    import imagecorruptions

    corrupted = np.empty_like(images, order="C")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the images are small, and there is a process for each core
    try:
        # it prints when a zoomed image is a pixel too small
        with _global_generators_kept(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index, image in enumerate(images, first):
                number = seeding.derive(0, f"{seeding.CORRUPTIONS}/{corruption}", severity, index)
                np.random.seed(np.frombuffer(number.to_bytes(8, "little"), "<u4"))
                seed = {"seed": number % 2**32} if corruption in _SEEDED else {}
                pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
                corrupted_pixels = imagecorruptions.corrupt(pixels, severity, corruption, **seed)
                if corrupted_pixels.shape != pixels.shape or corrupted_pixels.dtype != np.uint8:
                    raise ValueError(
                        f"it returned {corrupted_pixels.shape} of {corrupted_pixels.dtype} for {pixels.shape} of uint8"
                    )
                corrupted[index - first] = corrupted_pixels.transpose(2, 0, 1)
    except Exception as error:
        raise RunFailed(f"{PACKAGE}: {corruption} at severity {severity} failed: {first_line(error)}") from None
    finally:
        cv2.setNumThreads(threads)
    return corrupted


@contextlib.contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Restores the states of Python's and NumPy's global generators at the end."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
