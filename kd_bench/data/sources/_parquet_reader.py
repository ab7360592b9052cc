"""Reads images from parquet files as the public hub keeps them: a column of encoded images, and columns of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_bench.data import decoded_cache
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.decoded_cache import Allocate, Decoded
from kd_bench.data.decoding import decode_all
from kd_bench.data.sources._find_files import SplitFiles
from kd_bench.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset
    from kd_bench.data.dataset_spec import DatasetSpec

#: Names of the column of images in the hub's sets.
IMAGE_COLUMNS = ("img", "image")
#: Names of the column of labels, if there is one kind.
LABEL_COLUMNS = ("label", "labels", "fine_label")

_ROWS = 256  # in memory at a time, encoded


def load(spec: DatasetSpec, dataset: Dataset, files: SplitFiles, native_size: int | None = None) -> ArrayDataset:
    """Loads both splits, with one kind of label, in the order of the files; decoded once and then taken from the cache.

    Every image must be of ``native_size`` x ``native_size`` pixels, unless it is None.

    Raises:
        UserError: The files are damaged, or their labels are no class numbers.
    """
    size = dataset.size or spec.image_size

    def decode(paths: tuple[Path, ...], allocate: Allocate) -> Decoded:
        # The training files decide for both splits, so that both have the same kind of label.
        column = _label_column(files.train[0], dataset.labels)
        return read(paths, {column: None}, allocate, size, native_size)

    train, test = (
        decoded_cache.load(
            f"{spec.name}-{size}-{split}",
            [dataset.labels, decoded_cache.file_fingerprint([files.train[0], *paths])],
            partial(decode, paths),
        )
        for split, paths in (("train", files.train), ("test", files.test))
    )
    names = train.class_names[0] or test.class_names[0]
    if test.class_names[0] and names != test.class_names[0]:
        raise UserError(f"{files.folder}: training and test files do not name the same classes")
    if not names:
        names = _numbered_classes(files, train.labels[:, 0], test.labels[:, 0])
    for paths, labels in ((files.train, train.labels), (files.test, test.labels)):
        if labels.max() >= len(names):
            raise UserError(f"{paths[0]}: there is a label {labels.max()}, but only {len(names)} classes")
    return ArrayDataset.from_decoded(spec, train, test, names)


def _numbered_classes(files: SplitFiles, train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """Returns names for classes that are only numbered, after checking that the numbers leave none out."""
    present = np.unique(train)
    gap = np.flatnonzero(present != np.arange(len(present)))
    if len(gap):
        raise UserError(
            f"{files.train[0]}: the labels must be 0, 1, 2 and so on, but no training image has {gap[0]}, and one "
            f"has {present[-1]}"
        )
    if test.max() >= len(present):
        raise UserError(f"{files.test[0]}: a test image has the label {test.max()}, and no training image has")
    return tuple(map(str, range(len(present))))


def read(
    files: Sequence[Path],
    labels: Mapping[str, int | None],
    allocate: Allocate,
    size: int,
    native_size: int | None = None,
) -> Decoded:
    """Decodes all images of these files, in order.

    Args:
        files: Those of one split.
        labels: The label columns and the number of classes of each; None for any number.
        allocate: Returns the array that the images are written into.
        size: Height and width that the images are resized to, in pixels.
        native_size: Height and width that every image must have; None allows any.

    Returns:
        The images and labels. Class names that the files do not hold are numbers, or none if the number of classes is
        not known.

    Raises:
        UserError: A file is damaged, or holds something else; names the file.
    """
    total = 0
    for file in files:  # one open file at a time, because a system may allow fewer than a set has
        with _open(file) as table:
            total += table.metadata.num_rows
    if not total:
        raise UserError(f"{files[0]}: has no rows; get it again")
    schema = _schema(files[0])
    names = [_class_names(files[0], schema, column, count) for column, count in labels.items()]
    images = allocate((total, 3, size, size))
    targets = np.empty((total, len(labels)), np.int64)
    start = 0
    for file in files:
        with _open(file) as table:
            columns = [_image_column(file, table.schema_arrow), *labels]
            if missing := [column for column in labels if column not in table.schema_arrow.names]:
                raise UserError(f"{file}: has no column {missing[0]!r}, only {', '.join(table.schema_arrow.names)}")
            row = 0
            for batch in _batches(file, table, columns):
                end = start + len(batch)
                for kind, (column, classes) in enumerate(zip(labels, names, strict=True)):
                    targets[start:end, kind] = _targets(file, row, batch.column(column), column, len(classes))
                encoded = batch.column(columns[0])
                if pa.types.is_struct(encoded.type):
                    encoded = encoded.field("bytes")
                _decode(file, row, encoded.to_pylist(), images[start:end], native_size)
                start, row = end, row + len(batch)
    return Decoded(images, targets, tuple(names))


def _label_column(file: Path, column: str | None) -> str:
    """Returns the label column: the one asked for, else the first of ``LABEL_COLUMNS`` in the file."""
    present = _schema(file).names
    choices = LABEL_COLUMNS if column is None else (column,)
    for choice in choices:
        if choice in present:
            return choice
    near = nearest(column, present) if column else None
    end = f"did you mean {near!r}?" if near else f"only {', '.join(present)}: name the one with labels"
    raise UserError(f"{file}: has no column {' or '.join(map(repr, choices))}; {end}")


def _decode(file: Path, row: int, encoded: list[bytes | None], images: np.ndarray, native_size: int | None) -> None:
    decode_all(images, lambda i: encoded[i] or b"", lambda i: f"{file}: the image in row {row + i}", native_size)


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{file}: not a whole parquet file ({reason[0] if reason else error!r}); get it again")


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file, pre_buffer=False)  # buffering would keep the whole file in memory
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _schema(file: Path) -> Any:
    with _open(file) as table:
        return table.schema_arrow


def _batches(file: Path, table: Any, columns: list[str]) -> Iterator[Any]:
    try:
        yield from table.iter_batches(batch_size=_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _image_column(file: Path, schema: Any) -> str:
    for column in IMAGE_COLUMNS:
        if column in schema.names:
            kind = schema.field(column).type
            in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            encoded = kind.field("bytes").type if in_struct else kind
            if pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded):
                return column
            raise UserError(
                f"{file}: column {column!r} is {kind}, not the encoded images, or a struct that has them in 'bytes'"
            )
    raise UserError(f"{file}: has no column {' or '.join(map(repr, IMAGE_COLUMNS))}, only {', '.join(schema.names)}")


def _targets(file: Path, row: int, values: Any, column: str, classes: int) -> np.ndarray:
    """Returns the labels of the rows from ``row`` on; ``classes`` is 0 if their number is not known."""
    if not pa.types.is_integer(values.type) or values.null_count:
        raise UserError(f"{file}: column {column!r} must hold a whole number in every row")
    targets: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((targets < 0) | (targets >= classes if classes else False))
    if len(wrong):
        label = targets[wrong[0]]
        allowed = f"from 0 to {classes - 1}" if classes else "0 or more"
        hint = "; a split without labels cannot be used: remove its files" if label == -1 else ""
        raise UserError(f"{file}: column {column!r} must be {allowed}, but row {row + wrong[0]} has {label}{hint}")
    return targets


def _class_names(file: Path, schema: Any, column: str, count: int | None) -> tuple[str, ...]:
    """Returns the names in the metadata that the hub's library writes, else numbers from 0 to ``count`` - 1."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[column]["names"])
    except (LookupError, TypeError, ValueError):
        return tuple(map(str, range(count or 0)))
    if count is not None and len(names) != count:
        raise UserError(f"{file}: column {column!r} has {len(names)} classes, not {count}")
    return names
