"""Reads the CSV files of published values."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd_bench.utils.errors import UserError


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a file, each with its file and line for errors.

    Args:
        path: The file.
        columns: The columns that it must have; empty for any.

    Raises:
        UserError: If the file cannot be read, has other columns, or a row has not one value for each column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or ()
            if columns and list(names) != list(columns):
                raise UserError(f"{path}: should have the columns {', '.join(columns)}")
            for row in reader:
                context = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{context}: should have {len(names)} values")
                yield context, row
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
