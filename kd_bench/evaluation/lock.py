"""A lock that keeps two processes of a machine from doing the same evaluation."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kd_bench.utils.errors import RunFailed, UserError

#: Times that the lock file is opened anew because another process has just removed it.
_ATTEMPTS = 100


@contextmanager
def evaluation_lock(file: Path) -> Iterator[None]:
    """Inside, no other process of this machine does the same evaluation. The system unlocks it for a killed process.

    On a file system without locks several processes may do the same evaluation, and write the same result.

    Raises:
        RunFailed: If another process does it.
        UserError: If the folder cannot be written.
    """
    path = file.with_suffix(".lock")
    with _open_locked(path, file) as lock:
        try:
            yield
        finally:
            if _is_at(lock, path):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # the folder is not empty if something was written
                file.parent.rmdir()


def _open_locked(path: Path, file: Path) -> IO[bytes]:
    """Opens the lock file and locks it.

    A process that ends removes the file that it holds. Another one may have opened that file before and lock it
    afterwards, when nobody else can open it any more, so that its lock would keep out nobody. It opens the new file.
    """
    problem = "other processes keep removing it"
    for _ in range(_ATTEMPTS):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = open(path, "wb")  # noqa: SIM115
        except FileNotFoundError as error:  # a process that has ended has just removed the empty folder
            problem = error.strerror or problem
            continue
        except OSError as error:
            problem = error.strerror or str(error)
            break
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunFailed(f"{file}: another process is evaluating this") from None
        except OSError:  # this file system has no locks
            return lock
        if _is_at(lock, path):
            return lock
        lock.close()
    raise UserError(f"{path}: results cannot be written there: {problem}")


def _is_at(lock: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False
