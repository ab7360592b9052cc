"""Images in parquet files as the public hub keeps them: a column of encoded images, and columns of labels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kd_bench.data.cache import Decoded
from kd_bench.errors import UserError

#: What the hub's sets call the column of images.
IMAGE_COLUMNS = ("img", "image")


def read(files: Sequence[Path], labels: Mapping[str, int], size: int) -> Decoded:
    """Decodes all images of these files, in order.

    Args:
        files: The files of one split, in order.
        labels: The label columns and how many classes each has.
        size: Height and width that every image must have, in pixels.

    Raises:
        UserError: A file is damaged, or holds something else; says which.
    """
    opened = [_open(file) for file in files]
    total = sum(table.metadata.num_rows for table in opened)
    if not total:
        raise UserError(f"{files[0]}: has no rows; get it again")
    images = np.empty((total, 3, size, size), np.uint8)
    targets = np.empty((total, len(labels)), np.int64)
    at = 0
    for file, table in zip(files, opened, strict=True):
        columns = [_image_column(file, table.schema_arrow), *labels]
        if missing := [column for column in labels if column not in table.schema_arrow.names]:
            raise UserError(f"{file}: has no column {missing[0]!r}, only {', '.join(table.schema_arrow.names)}")
        first = at
        for batch in _batches(file, table, columns):
            for kind, (column, classes) in enumerate(labels.items()):
                targets[at : at + len(batch), kind] = _targets(file, batch.column(column), column, classes)
            for encoded in batch.column(columns[0]).field("bytes").to_pylist():
                images[at] = _image(file, at - first, encoded, size)
                at += 1
    names = tuple(_class_names(files[0], opened[0].schema_arrow, column, count) for column, count in labels.items())
    return Decoded(images, targets, names)


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{file}: not a whole parquet file ({reason[0] if reason else error!r}); get it again")


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _batches(file: Path, table: Any, columns: list[str]) -> Any:
    try:
        yield from table.iter_batches(batch_size=1024, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _image_column(file: Path, schema: Any) -> str:
    for column in IMAGE_COLUMNS:
        if column in schema.names:
            kind = schema.field(column).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return column
            raise UserError(f"{file}: column {column!r} is {kind}, not a struct with the encoded image in 'bytes'")
    raise UserError(f"{file}: has no column {' or '.join(map(repr, IMAGE_COLUMNS))}, only {', '.join(schema.names)}")


def _targets(file: Path, values: Any, column: str, classes: int) -> np.ndarray:
    if not pa.types.is_integer(values.type) or values.null_count:
        raise UserError(f"{file}: column {column!r} must hold a whole number in every row")
    targets: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        wrong = targets.min() if targets.min() < 0 else targets.max()
        raise UserError(f"{file}: column {column!r} must be from 0 to {classes - 1}, but a row has {wrong}")
    return targets


def _image(file: Path, row: int, encoded: bytes | None, size: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded or b"")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # what Pillow raises for garbage depends on the garbage
        raise UserError(f"{file}: the image in row {row} cannot be decoded; get the file again") from error
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise UserError(f"{file}: the image in row {row} is {height}x{width}, not {size}x{size}")
    return pixels.transpose(2, 0, 1)


def _class_names(file: Path, schema: Any, column: str, count: int) -> tuple[str, ...]:
    """From the metadata that the hub's library writes; numbers where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[column]["names"])
    except (LookupError, TypeError, ValueError):
        return tuple(map(str, range(count)))
    if len(names) != count:
        raise UserError(f"{file}: column {column!r} has {len(names)} classes, not {count}")
    return names
