"""The data sets by name: what is known of each without reading it, where its files are, and loading it.

Importing this module costs next to nothing, so that the command line can list and check names at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kd_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from kd_bench.data.splits import Splits


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before it is read."""

    name: str
    title: str
    num_classes: int
    """Of the default label kind."""
    image_size: int
    """Height and width in pixels."""
    channels: int
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    crop: int
    """Padding, in pixels, of the random crop that the set's recipes use and allow at most; 0 where none is allowed."""
    flip: bool
    """Whether a mirrored image keeps its label."""
    labels: tuple[str, ...]
    """The kinds of label to choose from, the first being the default; empty where there is no choice."""
    train_size: int
    test_size: int
    source: str
    """Citation, and where to get it."""
    label_classes: tuple[int, ...] = ()
    """Number of classes of each of ``labels``."""


# CIFAR-100's mean and std are those that the published teachers were trained with; they differ from the exact ones in
# the fourth digit. The digits' are those of their 200 training images.
_SPECS = (
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        image_size=32,
        channels=3,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        crop=4,
        flip=True,
        labels=("fine", "coarse"),
        label_classes=(100, 20),
        train_size=50_000,
        test_size=10_000,
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    DatasetSpec(
        name="digits",
        title="Handwritten digits of scikit-learn",
        num_classes=10,
        image_size=32,
        channels=3,
        mean=(0.3048, 0.3048, 0.3048),
        std=(0.3752, 0.3752, 0.3752),
        crop=2,
        flip=False,
        labels=(),
        train_size=200,
        test_size=1_597,
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part); "
        "comes with scikit-learn",
    ),
)
_BY_NAME = {spec.name: spec for spec in _SPECS}


class _Source(Protocol):
    """What a source's module offers."""

    def locate(self, spec: DatasetSpec, data_dir: Path) -> str: ...

    def load(self, spec: DatasetSpec, data_dir: Path, labels: str | None) -> Splits: ...


def _source(name: str) -> _Source:
    from kd_bench.data import cifar, digits

    sources: dict[str, _Source] = {"cifar100": cifar, "digits": digits}
    return sources[name]


def names() -> list[str]:
    """The data sets there are, sorted."""
    return sorted(_BY_NAME)


def spec(name: str, where: str = "") -> DatasetSpec:
    """What is known of a data set.

    Args:
        name: The data set's name.
        where: Where the name was written, for the error.

    Raises:
        UserError: There is no such data set.
    """
    if name not in _BY_NAME:
        raise unknown("dataset", name, names(), where)
    return _BY_NAME[name]


def check(name: str, *, labels: str | None = None, classes: int | None = None, where: str = "") -> None:
    """Checks a choice of data set, label kind and number of classes without reading anything.

    Args:
        name: The data set's name.
        labels: The kind of label; None for the default.
        classes: How many classes are kept, from the first on; None for all.
        where: Where they were written, for the error.

    Raises:
        UserError: One of them does not exist, or the number is out of range.
    """
    found = spec(name, where)
    at = f"{where}: " if where else ""
    if labels is not None and not found.labels:
        raise UserError(f"{at}{name} has one kind of label only, so labels: {labels!r} must be left out")
    if labels is not None and labels not in found.labels:
        raise unknown(f"kind of label of {name}", labels, found.labels, where)
    most = _all_classes(found, labels)
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or not 2 <= classes <= most):
        of = f"{name} with {labels} labels" if labels else name
        raise UserError(f"{at}classes must be a whole number from 2 to {most} for {of}, not {classes!r}")


def num_classes_of(name: str, labels: str | None = None, classes: int | None = None) -> int:
    """K for such a choice, as ``check`` takes it.

    Raises:
        UserError: As ``check``.
    """
    check(name, labels=labels, classes=classes)
    return _all_classes(spec(name), labels) if classes is None else classes


def _all_classes(found: DatasetSpec, labels: str | None) -> int:
    return found.num_classes if labels is None else found.label_classes[found.labels.index(labels)]


def data_dir(given: Path | None = None) -> Path:
    """The folder that data sets are looked for in: the one given, else ``KD_BENCH_DATA``, else ``./data``."""
    return Path(given or os.environ.get("KD_BENCH_DATA") or "data").expanduser()


_resolve = data_dir  # below, the function's name is that of a parameter


def locate(name: str, data_dir: Path | None = None) -> str:
    """Says where a data set's files are, e.g. "parquet in /x/cifar100", without reading them.

    Raises:
        UserError: They are not there, or some are missing: says where it looked and how to get them.
    """
    return _source(spec(name).name).locate(spec(name), _resolve(data_dir))


def load(name: str, data_dir: Path | None = None, *, labels: str | None = None, classes: int | None = None) -> Splits:
    """Loads a data set.

    Args:
        name: The data set's name.
        data_dir: As ``data_dir()`` takes it.
        labels: The kind of label; None for the default.
        classes: Keeps the first so many classes of training and test set; the order of the images stays.

    Raises:
        UserError: As ``check`` and ``locate``, or a file is damaged.
    """
    check(name, labels=labels, classes=classes)
    splits = _source(name).load(spec(name), _resolve(data_dir), labels)
    return splits if classes is None else splits.first(classes)
