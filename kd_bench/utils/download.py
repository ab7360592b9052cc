"""Downloads single files with pooch: mirrors tried in order, checksums, members of archives, a progress callback.

A file gets its final name only after its checksum has been verified. If no checksum is published, ``<name>.sha256``
keeps that of the first download, and later downloads must have the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from kd_bench.utils.errors import RunFailed, UserError, first_line, nearest
from kd_bench.utils.files import file_lock, write_atomic
from kd_bench.utils.files import sha256 as sha256_of

#: Called with the number of bytes received, and the number expected if the server sends it.
Progress = Callable[[int, int | None], None]

#: Attempts per mirror.
ATTEMPTS = 4


@dataclass(frozen=True)
class DownloadedFile:
    """A file whose checksum has been verified."""

    path: Path
    sha256: str
    url: str  # empty if the file existed already
    pinned: bool  # whether the checksum is only that of the first download, because none is published


class _WrongContent(RunFailed):
    """A mirror sent another file."""


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str | None = None,
    member: str | None = None,
    progress: Progress | None = None,
) -> DownloadedFile:
    """Downloads a file unless it exists with the expected checksum.

    If several processes request the same file, one downloads it and the others wait. An existing file is accepted if no
    checksum is known. One with another checksum stays until its replacement is there.

    Args:
        urls: Mirrors (https, http or file) in order of preference.
        path: Where the file is stored.
        sha256: Its checksum; None pins that of the first download.
        member: Path of the file in the tar archive at ``urls``. The archive is kept beside ``path``, so that several
            of its members need one download.
        progress: Called while bytes arrive.

    Raises:
        RunFailed: If no mirror sends the file; the message has the reason for each mirror.
        UserError: If the folder is not writable, or the disk is full.
    """
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            try:
                return _fetch(url, path, sha256, member, progress)
            except RunFailed as failure:
                failures.append(f"{url}: {failure}")
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read or written ({error.strerror or error})") from None
    raise RunFailed(f"{path.name} could not be downloaded: {'; '.join(failures) or 'no address is known'}")


def _fetch(url: str, path: Path, sha256: str | None, member: str | None, progress: Progress | None) -> DownloadedFile:
    """Does the work of ``fetch`` for one mirror. The messages of its errors leave out the address."""
    pin = _pin_file(path)
    # Where files cannot be locked, each process downloads the file.
    with file_lock(path.with_name(f".{path.name}.lock")):
        expected = sha256.lower() if sha256 else pin.read_text("ascii", "replace")[:64] if pin.exists() else None
        if expected and not sha256 and not re.fullmatch("[0-9a-f]{64}", expected):
            raise UserError(f"{pin}: holds no SHA-256; remove it to accept the next download of {path.name}")
        if path.is_file():
            digest = sha256_of(path)
            if expected is None:
                with contextlib.suppress(OSError):  # a read-only folder is good enough
                    write_atomic(pin, f"{digest}  {path.name}\n")
            if expected in {None, digest}:
                return DownloadedFile(path, digest, "", sha256 is None)
        archive = path.with_name(Path(urlsplit(url).path).name or "archive.tar") if member else None
        if archive == path:
            raise RunFailed(f"the archive and what is taken out of it cannot both be called {path.name}")
        if archive:
            _fetch(url, archive, None, None, progress)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            if archive and member:
                _extract(archive, member, temporary)
            else:
                _download(url, temporary, progress)
            digest = sha256_of(temporary)
            if expected not in {None, digest}:
                hint = f" as at the first download (remove {pin} to accept another)" * (sha256 is None)
                raise _WrongContent(f"its SHA-256 is {digest}, and {expected} was expected{hint}")
            if expected is None:
                write_atomic(pin, f"{digest}  {path.name}\n")
            os.replace(temporary, path)
        except _WrongContent:
            if archive:  # so that the next mirror's archive is downloaded, and may differ
                archive.unlink(missing_ok=True)
                _pin_file(archive).unlink(missing_ok=True)
            raise
        finally:
            temporary.unlink(missing_ok=True)
    return DownloadedFile(path, digest, url, sha256 is None)


def _pin_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _download(url: str, to: Path, progress: Progress | None) -> None:
    scheme = urlsplit(url).scheme
    if scheme == "file":
        source = Path(url2pathname(urlsplit(url).path))
        if not source.is_file():
            raise RunFailed("there is no such file")
        shutil.copyfile(source, to)
        return
    if scheme not in {"https", "http"}:
        raise RunFailed("is not an https, http or file address")

    import pooch
    import requests

    bar = SimpleNamespace(total=0, reset=lambda: None, close=lambda: None)  # the attributes that pooch uses
    bar.update = lambda _: progress and progress(to.stat().st_size, bar.total or None)
    headers = {"User-Agent": "kd-bench", "Accept-Encoding": "identity"}
    downloader = pooch.HTTPDownloader(
        bar, chunk_size=1 << 20, timeout=60, headers=headers, hooks={"response": _refuse_web_page}
    )
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.2 * 2**attempt)
        try:
            downloader(url, to, None)
            return
        except requests.exceptions.InvalidURL as error:
            raise RunFailed(f"is not an address ({first_line(error)})") from None
        except requests.RequestException as error:
            if error.response is None:
                reason = f"the connection failed ({_innermost_message(error)})"
                continue
            reason = f"the server answers {error.response.status_code} {error.response.reason}"
            if error.response.status_code < 500 and error.response.status_code not in {408, 425, 429}:
                break  # another attempt would get the same answer
    raise RunFailed(reason)


def _refuse_web_page(response: Any, **_: Any) -> None:
    """Raises an error for HTML, which servers send instead of a file to ask for a login or a confirmation."""
    if response.ok and not response.is_redirect and response.headers.get("Content-Type", "").startswith("text/html"):
        raise RunFailed("the server sends a web page, not a file")


def _innermost_message(error: BaseException) -> str:
    """Returns the message of the system, which requests and urllib3 wrap in errors of their own."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or first_line(error)


def _extract(archive: Path, member: str, to: Path) -> None:
    """Writes one regular file of a tar archive to ``to``, and nothing else wherever the archive's names lead."""
    try:
        with tarfile.open(archive) as tar:
            entry = next((entry for entry in tar if _name(entry) == member), None)
            source = None if entry is None else tar.extractfile(entry)
            if entry is None or source is None:
                names = list(filter(None, map(_name, tar)))
                hint = nearest(member, names)
                choices = f"there is {hint!r}" if hint else f"there are: {', '.join(map(repr, names[:8]))}"
                raise RunFailed(f"the archive has no file {member!r}; {choices}")
            if entry.size > (free := shutil.disk_usage(to.parent).free):
                raise UserError(f"{to.parent}: {member} has {entry.size:,} bytes, and {free:,} are free")
            with open(to, "wb") as target:
                shutil.copyfileobj(source, target)
    except (RunFailed, UserError):
        raise
    except Exception as error:  # the type depends on the compression and on the damage
        if getattr(error, "errno", None):  # an error of the file system
            raise
        raise _WrongContent(f"is not a complete tar archive ({error or type(error).__name__})") from None


def _name(entry: tarfile.TarInfo) -> str | None:
    """Returns the name of a regular file of an archive, and None for a link or a folder."""
    return entry.name.removeprefix("./") if entry.isreg() else None
