"""A data set of images that are decoded when they are needed: only the names of the files are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kd_bench.config.data import Pipeline
from kd_bench.data.array_dataset import balanced_indices, drawn_indices, mask_without
from kd_bench.data.image_digest import ImageRecord, image_record
from kd_bench.data.sources import _file_digests, _find_files


@dataclass(frozen=True)
class Files:
    """The files of one split, sorted by class and name.

    Arrays and not lists, because processes that only read share an array's pages, but not those of a million strings,
    which Python writes to when it counts references.
    """

    folders: tuple[Path, ...]
    """One per class."""
    names: np.ndarray
    """(N,) bytes, as long as the longest name."""
    classes: np.ndarray
    """(N,) int64, rising."""

    @staticmethod
    def from_folders(folders: Sequence[Path], names: Iterable[Sequence[str]]) -> Files:
        """Makes the list of files from the folders, one per class, and the sorted names in each folder."""
        lists = [np.array([os.fsencode(name) for name in in_folder], "S") for in_folder in names]
        counts = [len(in_folder) for in_folder in lists]
        return Files(tuple(folders), np.concatenate(lists), np.repeat(np.arange(len(lists)), counts))

    def __len__(self) -> int:
        """N."""
        return len(self.names)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(self.classes)

    def name(self, index: int) -> str:
        """Returns the file's name."""
        return os.fsdecode(bytes(self.names[index]))

    def path(self, index: int) -> Path:
        """Returns the file's path."""
        return self.folders[self.classes[index]] / self.name(index)

    def describe_class(self, index: int) -> str:
        """Returns a text that names the image's class, for messages."""
        return str(self.folders[self.classes[index]])

    def read(self, index: int) -> bytes:
        """Returns the file's content. Raises a UserError if it cannot be read."""
        return _find_files.read_bytes(self.path(index))

    def sizes(self) -> np.ndarray:
        """Returns the sizes of the files in bytes: (N,) int64. Raises a UserError if one is missing."""
        return _file_digests.file_sizes([os.fspath(self.path(index)) for index in range(len(self))])

    def same_class(self, index: int) -> Iterable[int]:
        """Returns the other images of the same class, from the next one on and around to the first."""
        first, end = np.searchsorted(self.classes, [self.classes[index], self.classes[index] + 1]).tolist()
        return (*range(index + 1, end), *range(first, index))

    def select(self, rows: np.ndarray) -> Self:
        """Returns the files in ``rows``, an index or a mask."""
        return replace(self, names=self.names[rows], classes=self.classes[rows])

    def subset(self, count: int | None) -> Self:
        """Returns ``count`` files, balanced over the classes; None keeps all."""
        rows = balanced_indices(self.labels, count)
        return self if rows is None else self.select(rows.numpy())


@dataclass(frozen=True)
class FileDataset:
    """A data set whose files are known. It has the properties of ``ArrayDataset`` except for the images."""

    train: Files
    test: Files
    class_names: tuple[str, ...]
    """One per class, in the labels' order."""
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    pipeline: Pipeline
    """How the images become batches."""
    holdout: FileDataset | None = None
    """The files that are held out, as the test images of a data set; None if there are none."""

    @property
    def train_labels(self) -> Tensor:
        """(N,) int64, from 0 to ``num_classes`` - 1."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """(M,) int64."""
        return self.test.labels

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W) of the training images in batches."""
        return 3, self.pipeline.size, self.pipeline.size

    @cached_property
    def record(self) -> ImageRecord:
        """Digests of the files' names, sizes and labels. Their content is not read."""
        splits = [(_file_digests.file_digests(files), files.classes) for files in (self.train, self.test)]
        return image_record("names and sizes", splits)

    def take_classes(self, count: int) -> FileDataset:
        """Returns the files of the first ``count`` classes."""
        train, test = (files.select(files.classes < count) for files in (self.train, self.test))
        return replace(self, train=train, test=test, class_names=self.class_names[:count])

    def subset(self, train_images: int | None, test_images: int | None) -> FileDataset:
        """Returns the given numbers of files, as ``ArrayDataset.subset`` chooses them."""
        return replace(self, train=self.train.subset(train_images), test=self.test.subset(test_images))

    def hold_out(self, count: int) -> FileDataset:
        """Returns the data set without ``count`` training files, which become ``holdout``, as ``ArrayDataset`` does."""
        held_out = drawn_indices(self.train.labels, count)
        train = self.train.select(mask_without(len(self.train), held_out).numpy())
        return replace(self, train=train, holdout=replace(self, test=self.train.select(held_out.numpy())))
