"""Downloads of single files: resumed where they were cut off, checked, from the first mirror that has them.

Beside a file lie ``<name>.part`` and ``<name>.part.json`` while it is on its way, and ``<name>.sha256`` where nobody
has published a checksum: the one of the first download is then expected of every later one. A file gets its name only
when it is whole and its checksum is right.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
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

from kd_bench import __version__
from kd_bench.utils.errors import RunFailed, UserError, nearest
from kd_bench.utils.files import sha256 as sha256_of
from kd_bench.utils.files import write_atomic

#: Told how many bytes are there, and how many there will be, if the server says so.
Progress = Callable[[int, int | None], None]

#: How often a server is asked that gives nothing new.
ATTEMPTS = 4
#: Seconds without a byte after which a server is given up.
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


class _Wrong(_Failed):
    """A mirror gave something else."""


def fetch(
    urls: Sequence[str],
    to: Path,
    *,
    sha256: str | None = None,
    member: str | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Makes sure that a file is there, downloading it if need be.

    Of several processes that want the same file at once, one downloads it and the others wait. A file that somebody has
    put there is taken for what it should be, unless its checksum says otherwise.

    Args:
        urls: Mirrors (https, http or file), the preferred one first.
        to: The file.
        sha256: Its checksum; None pins that of the first download.
        member: Path of the file in the tar archive that the mirrors give. The archive is kept beside ``to``, so that
            several of its members cost one download.
        progress: Told of the bytes as they come.

    Returns:
        The file, whose checksum is the expected one.

    Raises:
        RunFailed: No mirror gave it: says what went wrong with each.
        UserError: The folder cannot be written, or the disk is full.
    """
    failures = []
    with _writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    with _alone(to) as part:
        if digest := _digest_if_good(to, sha256):
            return Fetched(to, digest, "", sha256 is None)
        for url in urls:
            try:
                if member is None:
                    digest = _download(url, to, part, sha256, progress)
                else:
                    digest = _take(url, member, to, sha256, progress)
                return Fetched(to, digest, url, sha256 is None)
            except _Failed as failure:
                failures.append(f"{url}: {failure}")
    raise RunFailed(f"{to.name} could not be downloaded: {'; '.join(failures) or 'no address is known'}")


def _expected(file: Path, sha256: str | None) -> str | None:
    """The published checksum of a file or, without one, that of its first download."""
    if sha256:
        return sha256.lower()
    pin = _pin_of(file)
    try:
        words = pin.read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{pin}: cannot be read ({error.strerror or error})") from None
    if not words or not re.fullmatch("[0-9a-f]{64}", words[0]):
        raise UserError(f"{pin}: holds no SHA-256; remove it to accept the next download of {file.name}")
    return words[0]


def _digest_if_good(file: Path, sha256: str | None) -> str:
    """The checksum of a file that is there and as expected; empty, and the file removed, where it is not."""
    try:
        if not file.is_file():
            return ""
        found, expected = sha256_of(file), _expected(file, sha256)
        if expected is None:
            with contextlib.suppress(UserError):  # a folder that can only be read is good enough
                _pin(file, found)
        elif found != expected:
            file.unlink()
            return ""
        return found
    except OSError as error:
        raise UserError(f"{error.filename or file}: cannot be used ({error.strerror or error})") from None


def _pin_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _pin(file: Path, digest: str) -> None:
    with _writing(_pin_of(file)):
        write_atomic(_pin_of(file), f"{digest}  {file.name}\n")


def _accept(received: Path, to: Path, sha256: str | None) -> str:
    """Gives what was received its name, if its checksum is right, and returns that."""
    with _writing(to):
        found = sha256_of(received)
        expected = _expected(to, sha256)
        if expected not in {None, found}:
            received.unlink()
            first = f" as at the first download (remove {_pin_of(to)} to accept another)" * (sha256 is None)
            raise _Wrong(f"its SHA-256 is {found}, and {expected} was expected{first}")
        if expected is None:
            _pin(to, found)
        os.replace(received, to)
    return found


def _take(url: str, member: str, to: Path, sha256: str | None, progress: Progress | None) -> str:
    """Takes a member out of the archive at ``url``, which is downloaded if it is not there."""
    archive = to.with_name(Path(urllib.parse.urlparse(url).path).name or "archive.tar")
    if archive == to:
        raise _Failed(f"the archive and what is taken out of it cannot both be called {to.name}")
    with _alone(archive) as part:
        if not _digest_if_good(archive, None):
            _download(url, archive, part, None, progress)
        temporary = to.with_name(f".{to.name}.{secrets.token_hex(6)}.tmp")
        try:
            _extract(archive, member, temporary)
            return _accept(temporary, to, sha256)
        except _Wrong:  # so that the next mirror's is not taken for this one
            with _writing(archive):
                archive.unlink(missing_ok=True)
                _pin_of(archive).unlink(missing_ok=True)
            raise
        finally:
            temporary.unlink(missing_ok=True)


def _extract(archive: Path, member: str, to: Path) -> None:
    """Takes one regular file out of a tar archive; nothing else of it is believed or written."""
    names = []
    try:
        with tarfile.open(archive) as tar:
            for entry in (one for one in tar if one.type in {tarfile.REGTYPE, tarfile.AREGTYPE}):
                if (name := entry.name.removeprefix("./")) != member:
                    names.append(name)
                    continue
                free = shutil.disk_usage(to.parent).free
                if entry.size > free:
                    raise UserError(f"{to.parent}: {member} has {entry.size:,} bytes, and {free:,} are free")
                source = tar.extractfile(entry)
                assert source is not None  # as it is for every regular file
                with source, _writing(to), open(to, "wb") as target:
                    while chunk := _read(source):
                        target.write(chunk)
                return
    except UserError:
        raise
    except Exception as error:  # of many kinds, by the compression and by what is damaged
        raise _Wrong(f"is no whole tar archive ({error or type(error).__name__})") from None
    hint = nearest(member, names)
    there = f"; there is {hint!r}" if hint else f"; there are: {', '.join(map(repr, names[:8]))}" if names else ""
    raise _Failed(f"the archive has no file {member!r}{there}")


def _download(url: str, to: Path, part: Path, sha256: str | None, progress: Progress | None) -> str:
    """Downloads ``url`` to ``to``, going on from what a former attempt left in ``part``, and returns its checksum."""
    scheme = urllib.parse.urlparse(url).scheme
    if scheme not in {"https", "http", "file"}:
        raise _Failed("is no https, http or file address")
    reason, most, fruitless = "", 0, 0
    while fruitless < (1 if scheme == "file" else ATTEMPTS):
        if reason:
            time.sleep(min(0.2 * 2**fruitless, 5))
        try:
            if _receive(url, part, progress):
                _state_of(part).unlink(missing_ok=True)
                return _accept(part, to, sha256)
            reason = "the connection was cut off"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # what is there is not the beginning of what the server has
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in {408, 425, 429}:  # which pass
                break
        except urllib.error.URLError as error:
            reason = f"cannot be reached ({_why(error.reason)})"
        except (http.client.InvalidURL, ValueError) as error:
            reason = f"is no address ({error})"
            break
        except (http.client.HTTPException, OSError) as error:
            reason = f"the connection was cut off ({_why(error)})"
        size = part.stat().st_size if part.is_file() else 0
        fruitless = 0 if size > most else fruitless + 1
        most = max(most, size)
    raise _Failed(reason)


def _receive(url: str, part: Path, progress: Progress | None) -> bool:
    """Adds to ``part`` what is missing of ``url``; whether it is whole then."""
    state = _read_state(part)
    # Only a server that says which version it has can be asked for the rest of it.
    there = part.stat().st_size if part.is_file() and state.get("url") == url and state.get("version") else 0
    if there and there == state.get("total"):
        return True
    headers = {"User-Agent": f"kd-bench/{__version__}", "Accept-Encoding": "identity"}
    if there:
        headers |= {"Range": f"bytes={there}-", "If-Range": str(state["version"])}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Wrong("the server gives a web page, not a file")
        resumed = answer.status == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            part.unlink()
            return False
        there *= resumed
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length and length.isdecimal() else None
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise the same bytes.
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        with _writing(part):
            if not resumed:  # before it is said whose beginning this is
                part.write_bytes(b"")
            write_atomic(_state_of(part), json.dumps({"url": url, "version": version, "total": total}))
        with _writing(part), open(part, "ab") as file:
            while chunk := _read(answer):
                file.write(chunk)
                there += len(chunk)
                if progress:
                    progress(there, total)
    return total is None or there == total


class _Unreadable(Exception):
    """What cannot be read, as against what cannot be written: in both cases the system raises an OSError."""


def _read(source: Any) -> bytes:
    try:
        content: bytes = source.read(_CHUNK)
    except OSError as error:
        raise _Unreadable from error
    return content


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in a sentence why a file cannot be written; what could not be read is raised as the system does."""
    try:
        yield
    except _Unreadable as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from None


def _why(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        found = json.loads(_state_of(part).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _alone(to: Path) -> Iterator[Path]:
    """Lets one process at a time at ``to``, and says where to put what is on its way.

    Where files cannot be locked, every process has a place of its own, and what is on its way is not kept.
    """
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            lock = stack.enter_context(open(to.with_name(f".{to.name}.lock"), "wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except (ImportError, OSError):
            part = to.with_name(f".{to.name}.{secrets.token_hex(6)}.part")
            stack.callback(part.unlink, missing_ok=True)
            stack.callback(_state_of(part).unlink, missing_ok=True)
            yield part
        else:
            yield to.with_name(f"{to.name}.part")
