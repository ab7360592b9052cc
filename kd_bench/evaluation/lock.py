"""A lock that keeps two processes of a machine from doing the same evaluation."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd_bench.utils.errors import RunFailed, UserError


@contextmanager
def evaluation_lock(file: Path) -> Iterator[None]:
    """Inside, no other process of this machine does the same evaluation. The system unlocks it for a killed process."""
    path = file.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: results cannot be written there: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFailed(f"{file}: another process is evaluating this") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # the folder is not empty if something was written
                file.parent.rmdir()
