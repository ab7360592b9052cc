"""Fingerprints of files and folders, by which caches notice that these have changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_bench.utils.errors import UserError

Fingerprint = list[tuple[str | int, ...]]


def fingerprint(paths: Sequence[Path], *fields: str) -> Fingerprint:
    """Returns the names of files or folders with these fields of their ``stat``, such as ``st_mtime_ns``.

    The folder is not part of it, so that a moved set is not decoded again. In archives, in SquashFS and in object
    stores times are whole seconds or constant; then two sets that the same program has written can agree in all fields.
    If all times are whole seconds, the folder is therefore added.

    Raises:
        UserError: One is missing, e.g. because a link leads nowhere.
    """
    try:
        stats = [(path.name, path.stat()) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    fingerprint: Fingerprint = [(name, *(getattr(stat, field) for field in fields)) for name, stat in stats]
    times = [getattr(stat, field) for _, stat in stats for field in fields if field.endswith("time_ns")]
    if all(time % 10**9 == 0 for time in times):
        fingerprint.append((str(paths[0].parent.resolve()),))
    return fingerprint
