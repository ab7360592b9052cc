"""Downloads of single files: resumed where they were cut off, checked, from the first mirror that has them.

Beside the file lie ``<name>.part`` while it is on its way, and ``<name>.sha256`` where nobody has published a checksum:
the one of the first download is then expected of every later one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.errors import RunFailed, UserError, nearest
from kd_bench.files import sha256 as sha256_of
from kd_bench.files import write_atomic

#: Told how many bytes are there, and how many there will be, if the server says so.
Progress = Callable[[int, int | None], None]

ATTEMPTS = 4
TIMEOUT = 60.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A file that is there now.

    Attributes:
        path: The file.
        sha256: Its checksum.
        url: Where it came from; empty where it was there already.
        pinned: Whether its checksum is only that of its first download, because none is published.
    """

    path: Path
    sha256: str
    url: str
    pinned: bool


class _Failed(Exception):
    """A mirror did not give the file; the next may."""


def fetch(
    urls: Sequence[str],
    to: Path,
    *,
    sha256: str | None = None,
    member: str | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Makes sure that a file is there, downloading it if need be.

    Args:
        urls: Mirrors, the preferred one first.
        to: The file.
        sha256: Its checksum; None pins that of the first download.
        member: Path of the file in the tar archive that the mirrors give. The archive is kept beside ``to``, so that
            several of its members cost one download.
        progress: Told of the bytes as they come.

    Returns:
        The file, whose checksum is the expected one.

    Raises:
        RunFailed: No mirror gave it: says what went wrong with each.
        UserError: The folder cannot be written.
    """
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _alone(to):
            return _fetch(urls, to, sha256, member, progress)
    except OSError as error:
        raise UserError(f"{error.filename or to}: cannot be written ({error.strerror or error})") from None


def _fetch(urls: Sequence[str], to: Path, sha256: str | None, member: str | None, progress: Progress | None) -> Fetched:
    pin = _pin_of(to)
    expected = sha256 or (pin.read_text().split()[0] if pin.is_file() else None)
    if to.is_file() and expected and (found := sha256_of(to)) == expected:
        return Fetched(to, found, "", sha256 is None)
    failures = []
    for url in urls:
        try:
            if member is None:
                _download(url, to, progress)
            else:
                _extract(_archive(url, to.parent, progress), member, to)
            found = sha256_of(to)
            if expected not in (None, found):
                to.unlink()
                raise _Failed(f"its SHA-256 is {found}, and {expected} was expected")
        except _Failed as failure:
            failures.append(f"{url}: {failure}")
            continue
        if sha256 is None:
            write_atomic(pin, f"{found}  {to.name}\n")
        return Fetched(to, found, url, sha256 is None)
    raise RunFailed(f"{to.name} could not be downloaded: {'; '.join(failures)}")


def _pin_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _archive(url: str, folder: Path, progress: Progress | None) -> Path:
    """The archive at ``url``, downloaded if it is not there; its own checksum is pinned."""
    name = Path(urllib.parse.urlparse(url).path).name
    file = folder / name
    pin = _pin_of(file)
    if not (file.is_file() and pin.is_file() and sha256_of(file) == pin.read_text().split()[0]):
        _download(url, file, progress)
        write_atomic(pin, f"{sha256_of(file)}  {name}\n")
    return file


def _extract(archive: Path, member: str, to: Path) -> None:
    """Takes one regular file out of a tar archive; nothing else of it is believed or written."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(6)}.tmp")
    try:
        with tarfile.open(archive) as tar:
            names = {one.name.removeprefix("./"): one for one in tar.getmembers() if one.isreg()}
            if member not in names:
                hint = nearest(member, names)
                raise _Failed(f"the archive has no file {member!r}{f'; there is {hint!r}' if hint else ''}")
            source = tar.extractfile(names[member])
            assert source is not None
            with source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
        os.replace(temporary, to)
    except (tarfile.TarError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise _Failed(f"is no whole tar archive ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _download(url: str, to: Path, progress: Progress | None) -> None:
    """Downloads ``url`` to ``to``, going on from what a former attempt left."""
    part = to.with_name(f"{to.name}.part")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(0.2 * 2**attempt, 5))
        try:
            if _receive(url, part, progress):
                os.replace(part, to)
                _state_of(part).unlink(missing_ok=True)
                return
            reason = "the connection was cut off"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # what is there is not the beginning of what the server has
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                break
        except urllib.error.URLError as error:
            reason = f"cannot be reached ({error.reason})"
        except (http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
            reason = f"the connection was cut off ({error or type(error).__name__})"
    raise _Failed(reason)


def _receive(url: str, part: Path, progress: Progress | None) -> bool:
    """Adds to ``part`` what is missing of ``url``; whether it is whole then."""
    there = part.stat().st_size if part.is_file() else 0
    state = _read_state(part)
    headers = {"User-Agent": "kd-bench", "Accept-Encoding": "identity"}
    # Only a server that says which version it has can be asked for the rest of it.
    if there and state.get("url") == url and state.get("version"):
        headers |= {"Range": f"bytes={there}-", "If-Range": state["version"]}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        resumed = answer.status == 206
        if not resumed:
            there = 0
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length else None
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise the same bytes.
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        write_atomic(_state_of(part), json.dumps({"url": url, "version": version}))
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                there += len(chunk)
                if progress:
                    progress(there, total)
    return total is None or there == total


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        found = json.loads(_state_of(part).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Lets one process at a time into the folder of ``to``; where files cannot be locked, all of them."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stack.enter_context(open(to.parent / ".lock", "wb")), fcntl.LOCK_EX)
        yield
