"""Reads files that others may have changed: regular files of limited size, and JSON without NaN or deep nesting."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from kd_bench.utils.errors import first_line

#: Size in bytes that no text file of a trial reaches.
LARGEST = 32 * 2**20

# A named pipe without a writer would block; with O_NONBLOCK it can be opened and recognised. Windows has no such flag.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class BadFile(Exception):
    """A file that cannot be used. The message is a predicate, to be put behind the file's name: "is a folder"."""


class UnreadableFile(BadFile):
    """A file that the system does not open or read. What it contains is not known."""


def read_regular(path: Path | str, largest: int | None = LARGEST) -> bytes | None:
    """Returns the content of a regular file; None if there is no file.

    Args:
        path: The file, or a link to it.
        largest: Size in bytes that the file must not exceed; None for no limit.

    Raises:
        UnreadableFile: If the file cannot be opened or read.
        BadFile: If the file is larger, or is a folder, a pipe, a device or a socket.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot be opened: {getattr(error, 'strerror', None) or first_line(error)}") from None
    try:
        facts = os.fstat(descriptor)
        check_regular(facts.st_mode)
        if largest is not None and facts.st_size > largest:
            raise BadFile(f"is larger than {largest / 2**20:.0f} MiB, which no such file is")
        content = os.read(descriptor, facts.st_size + 1)
        if len(content) == facts.st_size:
            return content
        with open(descriptor, "rb", closefd=False) as file:  # one call reads at most 2 GiB
            return content + file.read()
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def check_regular(mode: int) -> None:
    """Raises ``BadFile`` unless ``mode``, the ``st_mode`` of a file, is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise BadFile(f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


def read_json_object(path: Path | str) -> dict[str, Any] | None:
    """Returns the content of a JSON file that holds a mapping; None if there is no file.

    Raises:
        BadFile: As ``read_regular``; or the file is no JSON, has NaN or more than 200 nested levels, or holds no
            mapping. Numbers that are too large for a float are infinities.
    """
    content = read_regular(path)
    if content is None:
        return None
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise BadFile(f"is damaged: it is no JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise BadFile("is damaged: it holds no mapping")
    return value
