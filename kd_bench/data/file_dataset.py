"""A data set of images that are decoded when they are needed: only their names are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_bench.config.data import Pipeline
from kd_bench.data.array_dataset import evenly
from kd_bench.data.sources import find_files


@dataclass(frozen=True)
class Files:
    """The files of one split, sorted by class and name.

    Arrays and not lists, because processes that only read share an array's pages, but not those of a million strings,
    which Python writes to when it counts references.
    """

    folders: tuple[Path, ...]
    """One a class."""
    names: np.ndarray
    """(N,) bytes, of as many as the longest name needs."""
    classes: np.ndarray
    """(N,) int64, rising."""

    @staticmethod
    def of(folders: Sequence[Path], names: Iterable[Sequence[str]]) -> Files:
        """The files with these names in these folders.

        Args:
            folders: One a class.
            names: Of each folder, sorted.
        """
        lists = [np.array([os.fsencode(name) for name in some], "S") for some in names]
        counts = [len(some) for some in lists]
        return Files(tuple(folders), np.concatenate(lists), np.repeat(np.arange(len(lists)), counts))

    def __len__(self) -> int:
        """N."""
        return len(self.names)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(self.classes)

    def name(self, index: int) -> str:
        """The file's name."""
        return os.fsdecode(bytes(self.names[index]))

    def path(self, index: int) -> Path:
        """The file."""
        return self.folders[self.classes[index]] / self.name(index)

    def home(self, index: int) -> str:
        """Where the images of its class are, for people."""
        return str(self.folders[self.classes[index]])

    def read(self, index: int) -> bytes:
        """What is in the file.

        Raises:
            UserError: It cannot be read.
        """
        return find_files.read(self.path(index))

    def others(self, index: int) -> Iterable[int]:
        """The other images of the same class, from the next one on and round to the first."""
        first, end = np.searchsorted(self.classes, [self.classes[index], self.classes[index] + 1]).tolist()
        return (*range(index + 1, end), *range(first, index))

    def take(self, which: np.ndarray) -> Files:
        """Only those files, which keep their order."""
        return replace(self, names=self.names[which], classes=self.classes[which])


@dataclass(frozen=True)
class FileDataset:
    """A data set of which the files are known. It has what ``ArrayDataset`` has, except for the images."""

    train: Files
    test: Files
    class_names: tuple[str, ...]
    """One a class, in the labels' order."""
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    pipeline: Pipeline
    """How the images become batches."""

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
        """(3, H, W) of the training images as batches have them."""
        return 3, self.pipeline.size, self.pipeline.size

    def first(self, classes: int) -> FileDataset:
        """As ``ArrayDataset.first``."""
        train, test = (files.take(files.classes < classes) for files in (self.train, self.test))
        return replace(self, train=train, test=test, class_names=self.class_names[:classes])

    def few(self, train_images: int | None, test_images: int | None) -> FileDataset:
        """As ``ArrayDataset.few``."""
        return replace(self, train=_few(self.train, train_images), test=_few(self.test, test_images))


def _few(files: Files, wanted: int | None) -> Files:
    which = evenly(files.labels, wanted)
    return files if which is None else files.take(which.numpy())
