"""Images in parquet files as the public hub keeps them: a column of encoded images, and columns of labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_bench.data.decoded_cache import Allocate, Decoded
from kd_bench.data.decoding import Decoder
from kd_bench.utils.errors import UserError, nearest

#: What the hub's sets call the column of images.
IMAGE_COLUMNS = ("img", "image")
#: What they call the column of labels, where there is one kind.
LABEL_COLUMNS = ("label", "labels", "fine_label")

_ROWS = 256  # that are in memory at a time, encoded


def read(
    files: Sequence[Path], labels: Mapping[str, int | None], allocate: Allocate, size: int, native: int | None = None
) -> Decoded:
    """Decodes all images of these files, in order.

    Args:
        files: The files of one split, in order.
        labels: The label columns and how many classes each has; None for as many as there are.
        allocate: Gives the array that the images are written into.
        size: Height and width that the images are brought to, in pixels.
        native: Height and width that every image must have; None allows any.

    Returns:
        The images and labels; the classes' names are numbers where the files tell none, and none where it is not known
        either how many there are.

    Raises:
        UserError: A file is damaged, or holds something else; says which.
    """
    opened = [_open(file) for file in files]
    total = sum(table.metadata.num_rows for table in opened)
    if not total:
        raise UserError(f"{files[0]}: has no rows; get it again")
    names = [_class_names(files[0], opened[0].schema_arrow, column, count) for column, count in labels.items()]
    images = allocate((total, 3, size, size))
    targets = np.empty((total, len(labels)), np.int64)
    at = 0
    with Decoder(size, native) as decoder:
        for file, table in zip(files, opened, strict=True):
            columns = [_image_column(file, table.schema_arrow), *labels]
            if missing := [column for column in labels if column not in table.schema_arrow.names]:
                raise UserError(f"{file}: has no column {missing[0]!r}, only {', '.join(table.schema_arrow.names)}")
            row = 0
            for batch in _batches(file, table, columns):
                until = at + len(batch)
                for kind, (column, known) in enumerate(zip(labels, names, strict=True)):
                    targets[at:until, kind] = _targets(file, row, batch.column(column), column, len(known))
                encoded = batch.column(columns[0])
                if pa.types.is_struct(encoded.type):
                    encoded = encoded.field("bytes")
                _decode(decoder, file, row, encoded, images[at:until])
                at, row = until, row + len(batch)
    return Decoded(images, targets, tuple(names))


def label_column(file: Path, wanted: str | None) -> str:
    """The column of labels: the one that is wanted, else the first of ``LABEL_COLUMNS`` that is there.

    Raises:
        UserError: There is none.
    """
    there = _open(file).schema_arrow.names
    choices = LABEL_COLUMNS if wanted is None else (wanted,)
    for column in choices:
        if column in there:
            return column
    like = nearest(wanted, there) if wanted else None
    end = f"did you mean {like!r}?" if like else f"only {', '.join(there)}: name the one with labels"
    raise UserError(f"{file}: has no column {' or '.join(map(repr, choices))}; {end}")


def _decode(decoder: Decoder, file: Path, row: int, encoded: Any, images: np.ndarray) -> None:
    contents = encoded.to_pylist()
    decoder.fill(
        images, lambda number: contents[number] or b"", lambda number: f"{file}: the image in row {row + number}"
    )


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{file}: not a whole parquet file ({reason[0] if reason else error!r}); get it again")


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file, pre_buffer=False)  # which would keep the whole file in memory
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _batches(file: Path, table: Any, columns: list[str]) -> Any:
    try:
        yield from table.iter_batches(batch_size=_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _image_column(file: Path, schema: Any) -> str:
    for column in IMAGE_COLUMNS:
        if column in schema.names:
            kind = schema.field(column).type
            inner = (
                kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
            )
            if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
                return column
            raise UserError(
                f"{file}: column {column!r} is {kind}, not the encoded images, or a struct that has them in 'bytes'"
            )
    raise UserError(f"{file}: has no column {' or '.join(map(repr, IMAGE_COLUMNS))}, only {', '.join(schema.names)}")


def _targets(file: Path, row: int, values: Any, column: str, classes: int) -> np.ndarray:
    """Labels of some rows, the first of which is ``row``; ``classes`` is 0 where their number is not known."""
    if not pa.types.is_integer(values.type) or values.null_count:
        raise UserError(f"{file}: column {column!r} must hold a whole number in every row")
    targets: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((targets < 0) | (targets >= classes if classes else False))
    if len(wrong):
        label = targets[wrong[0]]
        allowed = f"from 0 to {classes - 1}" if classes else "0 or more"
        hint = "; a split without labels cannot be used: take its files away" if label == -1 else ""
        raise UserError(f"{file}: column {column!r} must be {allowed}, but row {row + wrong[0]} has {label}{hint}")
    return targets


def _class_names(file: Path, schema: Any, column: str, count: int | None) -> tuple[str, ...]:
    """From the metadata that the hub's library writes; else numbers, where it is known how many."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[column]["names"])
    except (LookupError, TypeError, ValueError):
        return tuple(map(str, range(count or 0)))
    if count is not None and len(names) != count:
        raise UserError(f"{file}: column {column!r} has {len(names)} classes, not {count}")
    return names
