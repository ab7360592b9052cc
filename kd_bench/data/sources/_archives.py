"""Downloads data sets from their authors with torchvision, which checks an archive before unpacking it."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import socket
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kd_bench.utils.errors import RunFailed, UserError

_TIMEOUT = 60.0  # seconds without a byte
_MOST_BYTES = 2 << 30  # allowed after unpacking; Tiny-ImageNet's archive has a quarter of that


@contextlib.contextmanager
def explain_errors(url: str, folder: Path) -> Iterator[None]:
    """Turns errors of a download of ``url`` into ``folder`` into one sentence, and sets a timeout for the server.

    A folder that cannot be written is a UserError; a bad server or file is a RunFailed.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise RunFailed(
            f"{url}: cannot be downloaded ({reason or type(error).__name__}); try again later, or get it in another "
            f"way and unpack it in {folder}"
        ) from error
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:
        raise RunFailed(f"{url}: the file received is not the published one, by its checksum; try again") from error
    finally:
        socket.setdefaulttimeout(before)


def fetch_zip(url: str, md5: str, folder: Path, inner: str) -> None:
    """Downloads an archive and unpacks it into ``folder``, all of it or nothing; then removes the archive.

    All content of the archive must be in one folder, ``inner``.
    """
    from torchvision.datasets.utils import download_url

    archive = folder / url.rpartition("/")[2]
    partial = folder / f".{inner}.{secrets.token_hex(6)}.tmp"
    with explain_errors(url, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            download_url(url, folder, archive.name, md5)
            _unpack(archive, partial, inner)
            os.replace(partial / inner, folder / inner)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        archive.unlink()


def _unpack(archive: Path, to: Path, inner: str) -> None:
    """Checks names and sizes first, because MD5 does not protect against a forged archive."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                parts = member.filename.split("/")
                if parts[0] != inner or ".." in parts or "\\" in member.filename:
                    raise RunFailed(f"{archive}: has files outside of the folder {inner}, and is not unpacked")
            if sum(member.file_size for member in members) > _MOST_BYTES:
                raise RunFailed(f"{archive}: would unpack to more than {_MOST_BYTES >> 30} GiB, and is not unpacked")
            content.extractall(to)
    except zipfile.BadZipFile as error:
        raise RunFailed(f"{archive}: is no complete zip archive ({error}); remove it and try again") from error
