"""The data sets by name: checking a choice, saying where its files are, getting them, and loading them.

Beside those of ``specs`` there are the user's own, by plug-ins (see ``kd_bench.data.sources.plugin``).

Importing this module costs next to nothing, so that the command line can list and check names at once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from kd_bench.data.dataset_spec import SPECS, DatasetSpec
from kd_bench.data.sources import plugin
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset, Pipeline
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

_BY_NAME = {spec.name: spec for spec in SPECS}

Images = TypeVar("Images", "ArrayDataset", "FileDataset")


class _Source(Protocol):
    """What a source's module offers; the data set comes checked and resolved."""

    def locate(self, spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str: ...

    def load(self, spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset: ...


def _source(name: str) -> _Source:
    if name not in _BY_NAME:
        return plugin
    from kd_bench.data.sources import cifar, digits, folder, parquet, tiny_imagenet

    sources: dict[str, _Source] = {
        "cifar10": cifar,
        "cifar100": cifar,
        "digits": digits,
        "folder": folder,
        "imagenet": folder,
        "parquet": parquet,
        "tiny_imagenet": tiny_imagenet,
    }
    return sources[name]


def names() -> list[str]:
    """The data sets that are known by name, sorted: those of the suite and those of installed packages."""
    return sorted({*_BY_NAME, *plugins.offered_names(plugins.DATASET)})


def spec(name: str, context: str = "") -> DatasetSpec:
    """What is known of a data set.

    Args:
        name: The data set's name; for one of the user's own, its plug-in.
        context: Where the name was written, for the error.

    Raises:
        UserError: There is no such data set.
    """
    return _BY_NAME.get(name) or plugin.spec(name, _BY_NAME, context)


def check(dataset: Dataset, context: str = "", pipeline: Pipeline | None = None) -> None:
    """Checks a choice of data set, path, size, label kind and number of classes without reading anything.

    Args:
        dataset: The choice.
        context: Where it was written, for the error.
        pipeline: How its images become batches.

    Raises:
        UserError: One of them does not exist, is missing or out of range, or the set leaves no such choice.
    """
    name, labels, classes, size = dataset.name, dataset.labels, dataset.classes, dataset.size
    found = spec(name, context)
    at = f"{context}: " if context else ""
    if dataset.source is not None and name in _BY_NAME:
        raise UserError(f"{at}{name} comes with kd-bench, so source: {dataset.source!r} must be left out")
    if dataset.source is not None:
        plugin.plugin_of(dataset).refuse_changes(dataset.source)
    if "path" not in found.takes and dataset.path is not None:
        raise UserError(f"{at}{name} is known by its name, so path: {dataset.path!r} must be left out")
    if "path" in found.takes and not dataset.path:
        raise UserError(f"{at}{name} needs a path: {found.source}")
    if size is not None and "size" not in found.takes and size != found.image_size:
        raise UserError(f"{at}{name} has images of {found.image_size} pixels only, so size: {size} must be left out")
    if size is not None and found.sizes and size not in found.sizes:
        choices = " or ".join(map(str, found.sizes))
        raise UserError(f"{at}size must be {choices} for {name}, not {size}")
    if pipeline is not None and not found.streams:
        sets = " and ".join(one.name for one in SPECS if one.streams)
        raise UserError(f"{at}{name} is decoded once, so pipeline must be left out; it is for {sets}")
    if pipeline is not None and size not in (None, pipeline.size):
        raise UserError(f"{at}size: {size} must be left out, because pipeline.size says {pipeline.size}")
    if labels is not None and "labels" not in found.takes:
        raise UserError(f"{at}{name} has one kind of label only, so labels: {labels!r} must be left out")
    if labels is not None and found.labels and labels not in found.labels:
        raise unknown(f"kind of label of {name}", labels, found.labels, context)
    most = _all_classes(found, labels)
    if classes is not None and most is not None and classes > most:
        raise UserError(f"{at}{_too_many(dataset, most)}")
    for key, wanted, there in (
        ("train_images", dataset.train_images, found.train_size),
        ("test_images", dataset.test_images, found.test_size),
    ):
        if wanted is not None and there is not None and wanted > there:
            raise UserError(f"{at}{_too_few(dataset, key, wanted, there)}")


def _all_classes(found: DatasetSpec, labels: str | None) -> int | None:
    return found.label_classes[found.labels.index(labels)] if labels and found.labels else found.num_classes


def _too_many(dataset: Dataset, most: int) -> str:
    of = f"{dataset.name} with {dataset.labels} labels" if dataset.labels else dataset.name
    return f"classes must be a whole number from 2 to {most} for {of}, not {dataset.classes}"


def _too_few(dataset: Dataset, key: str, wanted: int, there: int) -> str:
    return f"{key}: {wanted} is more than {dataset.name} has, {there}"


def resolved(dataset: Dataset, pipeline: Pipeline | None = None) -> Dataset:
    """The same images with every choice written out: the kind of label, and the size.

    What the set leaves no choice of becomes None, so that the same images are not written in two ways; so does the size
    where there is a pipeline, which says it. A plug-in gets the hash of its file.

    Raises:
        UserError: There is no such data set.
    """
    found = spec(dataset.name)
    size = dataset.size or found.image_size if "size" in found.takes and pipeline is None else None
    labels = dataset.labels or (found.labels[0] if found.labels else None)
    source = None if dataset.name in _BY_NAME else plugin.plugin_of(dataset).hash()
    return dataset.model_copy(update={"name": found.name, "labels": labels, "size": size, "source": source})


def chosen(dataset: Dataset) -> DatasetSpec:
    """What is known of the images so chosen: their number of classes, their size, and a crop that goes with it.

    Raises:
        UserError: As ``check``.
    """
    check(dataset)
    found = spec(dataset.name)
    size = dataset.size or found.image_size
    return replace(
        found,
        num_classes=dataset.classes or _all_classes(found, dataset.labels),
        image_size=size,
        crop=found.crop * size // found.image_size,
    )


def data_dir(given: Path | None = None) -> Path:
    """The folder that data sets are looked for in: the one given, else ``KD_BENCH_DATA``, else ``./data``."""
    return Path(given or os.environ.get("KD_BENCH_DATA") or "data").expanduser()


_resolve = data_dir  # below, the function's name is that of a parameter


def locate(dataset: Dataset, data_dir: Path | None = None) -> str:
    """Says where a data set's files are, e.g. "parquet in /x/cifar100", without reading them.

    Raises:
        UserError: As ``check``; or they are not there, or some are missing: says where it looked and how to get them.
    """
    check(dataset)
    return _source(dataset.name).locate(spec(dataset.name), resolved(dataset), _resolve(data_dir))


def download(dataset: Dataset, data_dir: Path | None = None) -> None:
    """Downloads a data set from its authors into the data folder, unless it is there.

    Raises:
        UserError: It cannot be had this way: says where to get it; or the folder cannot be written.
        RunFailed: It cannot be reached, or what came is not what was published.
    """
    found, place = spec(dataset.name), _resolve(data_dir)
    if not found.fetched:
        raise UserError(f"{found.name} cannot be downloaded by kd-bench: {found.source}")
    from kd_bench.data.sources import cifar, tiny_imagenet

    (tiny_imagenet if found.name == "tiny_imagenet" else cifar).download(found, place)


def load(dataset: Dataset, data_dir: Path | None = None) -> ArrayDataset:
    """Loads a data set.

    Args:
        dataset: Which; with ``classes``, only the images of the first so many, in the order they had; with
            ``train_images`` and ``test_images``, only so many of these.
        data_dir: As ``data_dir()`` takes it.

    Raises:
        UserError: As ``check`` and ``locate``; or a file is damaged, or has fewer classes or images than asked for.
    """
    check(dataset)
    return _chosen_of(_source(dataset.name).load(spec(dataset.name), resolved(dataset), _resolve(data_dir)), dataset)


def listed(dataset: Dataset, pipeline: Pipeline, data_dir: Path | None = None) -> FileDataset:
    """Lists the files of a data set whose images are decoded when they are needed.

    Args:
        dataset: As ``load`` takes it.
        pipeline: How its images become batches.
        data_dir: As ``data_dir()`` takes it.

    Raises:
        UserError: As ``check`` and ``locate``; or there are fewer classes or images than asked for.
    """
    from kd_bench.data.sources import folder

    check(dataset, pipeline=pipeline)
    return _chosen_of(folder.listed(spec(dataset.name), dataset, _resolve(data_dir), pipeline), dataset)


def images(dataset: Dataset, pipeline: Pipeline | None, data_dir: Path | None = None) -> ArrayDataset | FileDataset:
    """The images that a trial asks for: ``load``ed, or ``listed`` where there is a pipeline."""
    return load(dataset, data_dir) if pipeline is None else listed(dataset, pipeline, data_dir)


def _chosen_of(images: Images, dataset: Dataset) -> Images:
    if dataset.classes is not None:
        if dataset.classes > images.num_classes:
            raise UserError(_too_many(dataset, images.num_classes))
        images = images.first(dataset.classes)
    for key, wanted, there in (
        ("train_images", dataset.train_images, len(images.train_labels)),
        ("test_images", dataset.test_images, len(images.test_labels)),
    ):
        if wanted is not None and wanted > there:
            raise UserError(_too_few(dataset, key, wanted, there))
    return images.few(dataset.train_images, dataset.test_images)
