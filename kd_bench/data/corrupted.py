"""The corrupted copies of a test set: the published ones if they are there, otherwise copies that are made here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from kd_bench.config.corruptions import Source
    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

#: Called with the number of parts of a copy that are made, and their total.
Progress = Callable[[int, int], None]


class CorruptedCopy(NamedTuple):
    """The test images under one corruption at one severity.

    Attributes:
        images: (N, 3, H, W) uint8.
        digest: Hexadecimal digest of the pixels, in the images' order.
    """

    images: Tensor
    digest: str


class CorruptedImages(Protocol):
    """Corrupted copies of a test set.

    Attributes:
        source: Whether they are published or made here.
        origin: The set of files, or the package and its version.
        libraries: Versions of the libraries that compute the pixels, by name; empty for published ones.
        labels: (N,) int64, of each copy.
    """

    @property
    def source(self) -> Source: ...  # noqa: D102
    @property
    def origin(self) -> str: ...  # noqa: D102
    @property
    def libraries(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102

    def copy(self, corruption: str, severity: int, progress: Progress | None = None) -> CorruptedCopy:
        """Returns the images under a corruption at a severity from 1 to 5. ``progress`` is called if they are made.

        Raises:
            UserError: If a file is damaged, or if there is no room.
        """
        ...


def find(dataset: Dataset, images: ArrayDataset | FileDataset, data_dir: Path) -> CorruptedImages | str:
    """Returns the corrupted copies of a test set, or why there are none, as the end of a sentence.

    Args:
        dataset: Which images the trial selects.
        images: These images.
        data_dir: Folder of data sets, which may have ``CIFAR-10-C`` and ``CIFAR-100-C``.

    Raises:
        UserError: If published files are there, but incomplete, damaged, or of other images.
    """
    from kd_bench.data.made_corruptions import find_made
    from kd_bench.data.published_corruptions import find_published

    return find_published(dataset, images, data_dir) or find_made(dataset, images)


def digest_of(digests: np.ndarray[Any, Any]) -> str:
    """Returns one digest of the digests of images, (N, 16) uint8; see ``image_digest.digest_each``."""
    return hashlib.blake2b(np.ascontiguousarray(digests).data, digest_size=16).hexdigest()
