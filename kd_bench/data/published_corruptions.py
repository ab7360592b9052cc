"""CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich, 2019), from their published ``.npy`` files.

A file has the 10,000 test images at severity 1, then at severity 2, and so on. The images are in the order of the
authors' files of CIFAR, which need not be that of the files that the suite reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES, Source
from kd_bench.data.corrupted import CorruptedCopy, Progress, digest_of
from kd_bench.utils.errors import UserError, first_line
from kd_bench.utils.regular_files import BadFile, check_regular

if TYPE_CHECKING:
    from torch import Tensor

    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

#: Folder of the files below the data folder, by data set.
FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}

_LABELS = "labels.npy"


@dataclass(frozen=True)
class PublishedCorruptions:
    """The copies of the chosen test images in a folder of published files.

    Attributes:
        folder: The folder.
        size: Number of images that a file has at each severity.
        shape: Height, width and channels of an image.
        rows: (N,) int64: the chosen images among these.
        labels: (N,) int64.
        libraries: Empty, because nothing is computed.
    """

    source: ClassVar[Source] = "published"
    libraries: ClassVar[Mapping[str, str]] = {}

    folder: Path
    size: int
    shape: tuple[int, ...]
    rows: np.ndarray[Any, Any]
    labels: Tensor

    @property
    def origin(self) -> str:
        """The name of the set, which is the folder's."""
        return self.folder.name

    def copy(self, corruption: str, severity: int, progress: Progress | None = None) -> CorruptedCopy:
        """Returns the images under a corruption at a severity from 1 to 5.

        Raises:
            UserError: If the file cannot be read, or has another shape or type.
        """
        import torch

        from kd_bench.data.image_digest import digest_each

        path = self.folder / f"{corruption}.npy"
        array = _open(path)
        expected = (len(SEVERITIES) * self.size, *self.shape)
        if array.dtype != np.uint8 or array.shape != expected:
            raise UserError(f"{path}: should be {expected} of uint8, not {array.shape} of {array.dtype}")
        first = (severity - 1) * self.size
        images = np.ascontiguousarray(array[first : first + self.size][self.rows].transpose(0, 3, 1, 2))
        return CorruptedCopy(torch.from_numpy(images), digest_of(digest_each(images)))


def find_published(dataset: Dataset, images: ArrayDataset | FileDataset, data_dir: Path) -> PublishedCorruptions | None:
    """Returns the published copies of the chosen test images; None if there is no folder of them.

    The labels must be those of the whole test set. If they are in its order, the copies are those of the images that
    the settings select. If they are in another order, the images of a class cannot be told apart, so that there are
    copies of whole classes, but not of those images of each class that ``test_images`` selects.

    Raises:
        UserError: If a file is missing or damaged, or if the labels are not those of the test set.
    """
    folder = data_dir / FOLDERS.get(dataset.name, "")
    if dataset.name not in FOLDERS or dataset.labels == "coarse" or not folder.is_dir():
        return None
    for name in (_LABELS, *(f"{corruption}.npy" for corruption in CORRUPTIONS)):
        if not (folder / name).exists():
            raise UserError(
                f"{folder}: has no file {name}; unpack {folder.name} again, or remove the folder to have the corrupted "
                "images made"
            )
    whole = _whole_test_labels(dataset, images, data_dir)
    labels = _read_labels(folder / _LABELS, whole, dataset.title)
    rows = _chosen_rows(dataset, labels, in_order=np.array_equal(labels, whole))
    if rows is None:
        return None
    import torch

    height, width = images.image_shape[1:]
    return PublishedCorruptions(folder, len(whole), (height, width, 3), rows, torch.from_numpy(labels[rows]))


def _whole_test_labels(
    dataset: Dataset, images: ArrayDataset | FileDataset, data_dir: Path
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the labels of all test images of the set, in the order of the files that the suite reads."""
    if dataset.classes is None and dataset.test_images is None:
        return images.test_labels.numpy()
    from kd_bench.config.data import Dataset as Settings
    from kd_bench.data import registry

    return registry.load(Settings(name=dataset.name, labels=dataset.labels), data_dir).test_labels.numpy()


def _read_labels(
    path: Path, whole: np.ndarray[Any, np.dtype[np.int64]], title: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the labels of the images of one severity, (N,) int64."""
    array = _open(path)
    size = len(whole)
    if array.shape != (len(SEVERITIES) * size,) or array.dtype.kind not in "iu":
        raise UserError(
            f"{path}: should be ({len(SEVERITIES) * size},) whole numbers, not {array.shape} of {array.dtype}"
        )
    labels = np.asarray(array[:size]).astype(np.int64)
    if not (array.reshape(-1, size) == labels).all() or not np.array_equal(np.sort(labels), np.sort(whole)):
        raise UserError(f"{path}: its labels are not those of the test images of {title}; unpack the files again")
    return labels


def _chosen_rows(
    dataset: Dataset, labels: np.ndarray[Any, np.dtype[np.int64]], in_order: bool
) -> np.ndarray[Any, Any] | None:
    """Returns the indices of the chosen images among those of a severity; None if they cannot be told."""
    import torch

    from kd_bench.data.array_dataset import balanced_indices

    rows = torch.arange(len(labels))
    if dataset.classes is not None:
        rows = rows[torch.from_numpy(labels) < dataset.classes]
    chosen = balanced_indices(torch.from_numpy(labels)[rows], dataset.test_images)
    if chosen is not None:
        if not in_order:
            return None
        rows = rows[chosen]
    return rows.numpy()


def _open(path: Path) -> np.ndarray[Any, Any]:
    """Returns the array in a file, as a read-only map."""
    try:
        check_regular(path.stat().st_mode)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, BadFile) as error:
        raise UserError(f"{path}: cannot be read as .npy: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: should be an .npy file with one array, and is an archive of several")
    return array
