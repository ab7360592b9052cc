"""Getting data sets from their authors by torchvision's downloader, which checks an archive before it is unpacked."""

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

_PATIENCE = 60.0  # seconds without a byte, after which a server is given up
_MOST_BYTES = 2 << 30  # that an archive may unpack to; Tiny-ImageNet's has a quarter of that


@contextlib.contextmanager
def sentences(url: str, folder: Path) -> Iterator[None]:
    """Says in a sentence why a download failed, and sees that a silent server is not waited for for ever.

    Args:
        url: What is downloaded.
        folder: Where to.

    Raises:
        UserError: The folder cannot be written.
        RunFailed: The server cannot be reached, or sends something else.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
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
        raise RunFailed(f"{url}: what came is not the published file, by its checksum; try again") from error
    finally:
        socket.setdefaulttimeout(before)


def fetch_zip(url: str, md5: str, folder: Path, inner: str) -> None:
    """Downloads an archive and unpacks it, all of it or nothing; the archive is then removed.

    Args:
        url: Where it is.
        md5: Its checksum.
        folder: Where it goes.
        inner: The folder that all of it is in.

    Raises:
        UserError: The folder cannot be written.
        RunFailed: The server cannot be reached, or sends something else.
    """
    from torchvision.datasets.utils import download_url

    archive = folder / url.rpartition("/")[2]
    partial = folder / f".{inner}.{secrets.token_hex(6)}.tmp"
    with sentences(url, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            download_url(url, folder, archive.name, md5)
            _unpack(archive, partial, inner)
            os.replace(partial / inner, folder / inner)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        archive.unlink()


def _unpack(archive: Path, to: Path, inner: str) -> None:
    """MD5 no longer keeps a forger out, so what the archive says of itself is not believed."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            parts = (member.filename.split("/") for member in members)
            if any(
                names[0] != inner or ".." in names or "\\" in member.filename
                for member, names in zip(members, parts, strict=True)
            ):
                raise RunFailed(f"{archive}: has files outside of the folder {inner}, and is not unpacked")
            if sum(member.file_size for member in members) > _MOST_BYTES:
                raise RunFailed(f"{archive}: would unpack to more than {_MOST_BYTES >> 30} GiB, and is not unpacked")
            content.extractall(to)
    except zipfile.BadZipFile as error:
        raise RunFailed(f"{archive}: is no whole zip archive ({error}); remove it and try again") from error
