"""Reading and writing of files. Files are written whole and renamed, so that no process reads half of one."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_bench.utils.errors import UserError

#: Errors of file systems without hard links: exFAT, Google Drive and others.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes ``content`` to a temporary file in the same folder and renames it to ``path``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, content: bytes | str) -> bool:
    """Writes a file unless it exists, and returns whether it was written.

    If several processes try at once, one of them succeeds, on network file systems too. On a file system without hard
    links the file is empty for a moment, before it gets its content.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    write_atomic(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS repeats a request whose answer was lost, and then says that the file exists, which it has just made.
        return temporary.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def check_output(path: Path, option: str) -> None:
    """Checks that a file that the user names can be written, before work is done for it.

    Args:
        path: A regular file, a device like ``/dev/stdout``, a link to one of these, or nothing yet.
        option: The option that named it, for the error.

    Raises:
        UserError: If it is a folder, a disk, or anything else that a file must not replace.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{option}: {path} is a folder; name a file in it")
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise UserError(f"{option}: {path} is a disk or a socket; name a file")


def write_output(path: Path, content: str, option: str) -> None:
    """Writes a file that the user names; a regular file is replaced as a whole, and a link's target in its place.

    Args:
        path, option: As for ``check_output``.
        content: The text.

    Raises:
        UserError: As ``check_output``; also if the file cannot be written, or nothing reads the pipe that it is.
    """
    check_output(path, option)
    try:
        if path.exists() and not path.is_file():
            # Opening a pipe that nothing reads would wait for ever.
            with open(os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)), "wb") as device:
                os.set_blocking(device.fileno(), True)
                device.write(content.encode())
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "nothing reads from this pipe" if error.errno == errno.ENXIO else error.strerror
        raise UserError(f"{option}: {path} cannot be written: {reason}") from None


def json_text(value: Any) -> str:
    """Returns ``value`` as indented JSON. NaN and infinities are refused.

    Names of files need not be text. Their bytes that are none, which Python has as lone surrogates, become "?".
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode()


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically. NaN and infinities are refused."""
    write_atomic(path, json_text(value))


def read_json(path: Path) -> Any:
    """Reads a JSON file, or returns None if it does not exist."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Waits for the lock of a lock file and holds it inside. The system releases it if the process dies.

    Yields False, without a lock, where files cannot be locked or written.
    """
    with contextlib.ExitStack() as stack:
        locked = False
        with contextlib.suppress(ImportError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            import fcntl

            fcntl.flock(stack.enter_context(open(path, "wb")), fcntl.LOCK_EX)
            locked = True
        yield locked


def disk_bytes(path: Path) -> int:
    """Returns the bytes that a file takes on the disk; holes of sparse files take none."""
    return path.stat().st_blocks * 512


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
