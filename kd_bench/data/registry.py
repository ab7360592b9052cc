"""The data sets by name: checks settings, and locates, downloads and loads the images.

The built-in sets are the files of ``kd_bench.data.sources``; the user's own are plug-ins (see
``kd_bench.data.dataset_plugin``). Importing this module costs next to nothing, so that the command line can list and
check names at once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kd_bench.data import dataset_plugin
from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources import built_in
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, prefix, unknown
from kd_bench.utils.paths import expand_user

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset, Pipeline
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.file_dataset import FileDataset

Images = TypeVar("Images", "ArrayDataset", "FileDataset")


def names() -> list[str]:
    """Returns the names of all data sets, sorted: the built-in ones and those of installed packages."""
    return sorted({*built_in(), *plugins.entry_point_names(plugins.DATASET)})


def spec(name: str, context: str = "") -> DatasetSpec:
    """Returns the description of a data set. ``context`` is where the name was written, for the error.

    Raises:
        UserError: There is no such data set.
    """
    return built_in()[name][0] if name in built_in() else dataset_plugin.spec(name, built_in(), context)


def _module(name: str) -> ModuleType:
    return built_in()[name][1] if name in built_in() else dataset_plugin


def _find(dataset: Dataset, data_dir: Path | None, pipeline: Pipeline | None = None) -> Any:
    """Returns the files of a data set, after a check of its settings."""
    check(dataset, pipeline=pipeline)
    return _module(dataset.name).find(spec(dataset.name), resolve(dataset), resolve_data_dir(data_dir))


def check(dataset: Dataset, context: str = "", pipeline: Pipeline | None = None) -> None:
    """Checks the settings of a data set, and whether it can be used with a pipeline, without reading any file.

    Raises:
        UserError: A setting is missing, out of range, or no option of the set.
    """
    name, labels, size = dataset.name, dataset.labels, dataset.size
    dataset_spec = spec(name, context)
    at = prefix(context)
    if dataset.source is not None and name in built_in():
        raise UserError(f"{at}{name} comes with kd-bench, so source: {dataset.source!r} must be left out")
    if dataset.source is not None:
        plugins.find(plugins.DATASET, name).refuse_changes(dataset.source)
    if "path" not in dataset_spec.options and dataset.path is not None:
        raise UserError(f"{at}{name} is known by its name, so path: {dataset.path!r} must be left out")
    if "path" in dataset_spec.options and not dataset.path:
        raise UserError(f"{at}{name} needs a path: {dataset_spec.source}")
    if size is not None and "size" not in dataset_spec.options and size != dataset_spec.image_size:
        raise UserError(
            f"{at}{name} has images of {dataset_spec.image_size} pixels only, so size: {size} must be left out"
        )
    if size is not None and dataset_spec.sizes and size not in dataset_spec.sizes:
        raise UserError(f"{at}size must be {' or '.join(map(str, dataset_spec.sizes))} for {name}, not {size}")
    if pipeline is not None and not dataset_spec.streams:
        streaming = " and ".join(other.name for other, _ in built_in().values() if other.streams)
        raise UserError(f"{at}{name} is decoded once, so pipeline must be left out; it is for {streaming}")
    if pipeline is not None and size not in (None, pipeline.size):
        raise UserError(f"{at}size: {size} must be left out, because pipeline.size says {pipeline.size}")
    if labels is not None and "labels" not in dataset_spec.options:
        raise UserError(f"{at}{name} has one kind of label only, so labels: {labels!r} must be left out")
    if labels is not None and dataset_spec.labels and labels not in dataset_spec.labels:
        raise unknown(f"kind of label of {name}", labels, dataset_spec.labels, context)
    _check_classes(dataset, _num_classes(dataset_spec, labels), at)
    _check_counts(dataset, dataset_spec.train_size, dataset_spec.test_size, at)


def _num_classes(spec: DatasetSpec, labels: str | None) -> int | None:
    return spec.label_classes[spec.labels.index(labels)] if labels and spec.labels else spec.num_classes


def _check_classes(dataset: Dataset, num_classes: int | None, at: str = "") -> None:
    if dataset.classes is not None and num_classes is not None and dataset.classes > num_classes:
        title = f"{dataset.name} with {dataset.labels} labels" if dataset.labels else dataset.name
        raise UserError(
            f"{at}classes must be a whole number from 2 to {num_classes} for {title}, not {dataset.classes}"
        )


def _check_counts(dataset: Dataset, train_size: int | None, test_size: int | None, at: str = "") -> None:
    for key, size in (("train_images", train_size), ("test_images", test_size)):
        count = getattr(dataset, key)
        if count is not None and size is not None and count > size:
            raise UserError(f"{at}{key}: {count} is more than {dataset.name} has, {size}")
    chosen = train_size if dataset.train_images is None else dataset.train_images
    if dataset.holdout is not None and chosen is not None and dataset.holdout >= chosen:
        raise UserError(f"{at}holdout: {dataset.holdout} of {chosen} training images leave none to train on")


def resolve(dataset: Dataset, pipeline: Pipeline | None = None) -> Dataset:
    """Returns the settings with every choice written out: the kind of label, the size, the hash of a plug-in's file.

    Settings that are no option of the set become None, so that the same images have one identity. With a pipeline the
    size becomes None too, because the pipeline has it.

    Raises:
        UserError: There is no such data set.
    """
    dataset_spec = spec(dataset.name)
    size = dataset.size or dataset_spec.image_size if "size" in dataset_spec.options and pipeline is None else None
    labels = dataset.labels or (dataset_spec.labels[0] if dataset_spec.labels else None)
    source = None if dataset.name in built_in() else plugins.find(plugins.DATASET, dataset.name).hash()
    return dataset.model_copy(update={"name": dataset_spec.name, "labels": labels, "size": size, "source": source})


def resolve_spec(dataset: Dataset) -> DatasetSpec:
    """Returns the description of the chosen images: their number of classes, their size, and the crop for that size.

    Raises:
        UserError: As ``check``.
    """
    check(dataset)
    dataset_spec = spec(dataset.name)
    size = dataset.size or dataset_spec.image_size
    return replace(
        dataset_spec,
        num_classes=dataset.classes or _num_classes(dataset_spec, dataset.labels),
        image_size=size,
        crop=dataset_spec.crop * size // dataset_spec.image_size,
    )


def known_train_size(dataset: Dataset) -> int | None:
    """Returns the number of chosen training images that are not held out; None if only the files say it.

    The built-in sets whose number is known have equally many images of each class.

    Raises:
        UserError: There is no such data set.
    """
    dataset_spec = spec(dataset.name)
    size = dataset_spec.train_size
    if size is not None and dataset.classes is not None and dataset.name in built_in():
        size = size * dataset.classes // (_num_classes(dataset_spec, dataset.labels) or dataset.classes)
    chosen = min((count for count in (size, dataset.train_images) if count is not None), default=None)
    return None if chosen is None else chosen - (dataset.holdout or 0)


def resolve_data_dir(folder: Path | None = None) -> Path:
    """Returns the folder of data sets: ``folder``, else ``KD_BENCH_DATA``, else ``./data``."""
    return expand_user(folder or os.environ.get("KD_BENCH_DATA") or "data")


def locate(dataset: Dataset, data_dir: Path | None = None) -> str:
    """Describes where a data set's files are, e.g. "parquet in /x/cifar100", without reading them.

    Raises:
        UserError: As ``check``; or files are missing: says where they were looked for and how to get them.
    """
    return str(_find(dataset, data_dir))


def download(dataset: Dataset, data_dir: Path | None = None) -> None:
    """Downloads a data set from its authors into the data folder, unless it is there.

    Raises:
        UserError: kd-bench cannot download it: says where to get it; or the folder cannot be written.
        RunFailed: The server cannot be reached, or the files are not the published ones.
    """
    dataset_spec = spec(dataset.name)
    if not dataset_spec.downloadable:
        raise UserError(f"{dataset_spec.name} cannot be downloaded by kd-bench: {dataset_spec.source}")
    _module(dataset.name).download(dataset_spec, resolve_data_dir(data_dir))


def load(dataset: Dataset, data_dir: Path | None = None) -> ArrayDataset:
    """Loads a data set into memory, whether or not it is complete.

    Raises:
        UserError: As ``check`` and ``locate``; or a file is damaged, or has fewer classes or images than asked for.
    """
    return _select(_read(dataset, None, _find(dataset, data_dir)), dataset)


def list_files(dataset: Dataset, pipeline: Pipeline, data_dir: Path | None = None) -> FileDataset:
    """Lists the files of a data set whose images ``pipeline`` decodes when they are needed; else as ``load``."""
    return _select(_read(dataset, pipeline, _find(dataset, data_dir, pipeline)), dataset)


def open_dataset(
    dataset: Dataset, pipeline: Pipeline | None, data_dir: Path | None = None
) -> ArrayDataset | FileDataset:
    """Returns the images of a trial: those of ``load``, or with a pipeline those of ``list_files``.

    A number from a part of a known set would pass for one from the set. Therefore the numbers of images must be those
    of the complete set, and so must the images be if their digest is known.

    Raises:
        UserError: As ``load``; or the images are not those of the set.
    """
    files = _find(dataset, data_dir, pipeline)
    images = _read(dataset, pipeline, files)
    _check_complete(dataset, files, images)
    return _select(images, dataset)


def _read(dataset: Dataset, pipeline: Pipeline | None, files: Any) -> Any:
    """Returns all images of a data set, an ``ArrayDataset`` or with a pipeline a ``FileDataset``."""
    dataset_spec, module = spec(dataset.name), _module(dataset.name)
    return (
        module.load(dataset_spec, resolve(dataset), files)
        if pipeline is None
        else module.list_files(dataset_spec, files, pipeline)
    )


def _check_complete(dataset: Dataset, files: Any, images: ArrayDataset | FileDataset) -> None:
    dataset_spec, folder = spec(dataset.name), getattr(files, "folder", files)
    if dataset_spec.counts is None:
        return
    kind = "parquet" if str(files).startswith("parquet") else "folder"
    advice = f"get the whole set, or name these images otherwise, as in dataset: {{name: {kind}, path: {folder}}}"
    for split, count, expected in zip(
        ("training", "test"), (len(images.train_labels), len(images.test_labels)), dataset_spec.counts, strict=True
    ):
        if count != expected:
            raise UserError(
                f"{folder}: has {count:,} {split} images, but {dataset_spec.title} has {expected:,}; {advice}"
            )
    record, size = images.record, dataset.size or dataset_spec.image_size
    if not dataset_spec.digests or record["kind"] != "pixels" or size != dataset_spec.image_size:
        return
    expected_digest = dataset_spec.digests[dataset_spec.labels.index(dataset.labels) if dataset.labels else 0]
    if record["digest"] != expected_digest:
        raise UserError(
            f"{folder}: its images or labels are not those of {dataset_spec.title}: their digest is "
            f"{record['digest']}, not {expected_digest}; {advice}"
        )


def _select(images: Images, dataset: Dataset) -> Images:
    if dataset.classes is not None:
        _check_classes(dataset, images.num_classes)
        images = images.take_classes(dataset.classes)
        for split, labels in (("training", images.train_labels), ("test", images.test_labels)):
            if not len(labels):
                raise UserError(f"classes: {dataset.name} has no {split} images of its first {dataset.classes} classes")
    _check_counts(dataset, len(images.train_labels), len(images.test_labels))
    images = images.subset(dataset.train_images, dataset.test_images)
    return images if dataset.holdout is None else images.hold_out(dataset.holdout)
