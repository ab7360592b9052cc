"""Downloads from a server with faults."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import http.client
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd_bench.utils import download
from kd_bench.utils.download import fetch
from kd_bench.utils.errors import RunFailed, UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server with files, and with faults for its next answers."""

    def __init__(self) -> None:
        self.files = {"/a.pth": CONTENT}
        self.content_type = "application/octet-stream"
        self.cut_after: list[int] = []  # bytes sent before the connection is closed, one per answer
        self.errors: list[int] = []  # status codes, one per answer
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                if self.path not in server.files:
                    self.send_error(404)
                    return
                if server.errors:
                    self.send_error(server.errors.pop(0))
                    return
                content = server.files[self.path]
                self.send_response(200)
                self.send_header("Content-Type", server.content_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if server.cut_after:
                    content = content[: server.cut_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that closes early
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    to = tmp_path / "new" / "a.pth"
    file = fetch([f"{server.url}/a.pth"], to, sha256=SHA256, progress=lambda *call: calls.append(call))
    assert (file.path, file.sha256, file.url, file.pinned) == (to, SHA256, f"{server.url}/a.pth", False)
    assert to.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert {path.name for path in to.parent.iterdir()} == {"a.pth", ".a.pth.lock"}
    fetch([f"{server.url}/a.pth"], to, sha256=SHA256)
    assert len(server.requests) == 1


def test_a_download_that_fails_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.errors = [100_000] * 2, [503]
    fetch([f"{server.url}/a.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert len(server.requests) == 4
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_file_stays_until_its_replacement_is_there(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"of another version")
    server.errors = [404]
    with pytest.raises(RunFailed, match="the server answers 404"):
        fetch([f"{server.url}/a.pth"], path, sha256=SHA256)
    assert path.read_bytes() == b"of another version"
    assert fetch([f"{server.url}/a.pth"], path, sha256=SHA256).sha256 == SHA256
    assert path.read_bytes() == CONTENT


def test_a_download_that_was_given_up_succeeds_the_next_time(server: Server, tmp_path: Path) -> None:
    server.errors = [503] * download.ATTEMPTS
    with pytest.raises(RunFailed, match="the server answers 503"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
    assert fetch([f"{server.url}/a.pth"], tmp_path / "a.pth").sha256 == SHA256


def test_a_broken_connection_is_not_an_error_of_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> bytes:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read", read)
        with pytest.raises(RunFailed, match=r"the connection failed \(broken\)"):
            fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert len(server.requests) == download.ATTEMPTS


def test_a_server_that_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000] * 50
    with pytest.raises(RunFailed, match="the connection failed"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert len(server.requests) == download.ATTEMPTS
    assert {path.name for path in tmp_path.iterdir()} == {".a.pth.lock"}


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    server.files["/bad.pth"] = b"not it"
    mirrors = [f"{server.url}/{name}.pth" for name in ("none", "bad", "a")]
    assert fetch(mirrors, tmp_path / "a.pth", sha256=SHA256).url == mirrors[2]
    with pytest.raises(RunFailed) as caught:
        fetch([*mirrors[:2], "http://127.0.0.1:1/a.pth"], tmp_path / "b.pth", sha256=SHA256)
    message = str(caught.value)
    assert f"{mirrors[0]}: the server answers 404" in message
    assert f"{mirrors[1]}: its SHA-256 is {hashlib.sha256(b'not it').hexdigest()}, and {SHA256} was expected" in message
    assert "http://127.0.0.1:1/a.pth: the connection failed (Connection refused)" in message
    assert not (tmp_path / "b.pth").exists()


def test_an_unknown_checksum_is_pinned_at_the_first_download(server: Server, tmp_path: Path) -> None:
    to = tmp_path / "a.pth"
    assert fetch([f"{server.url}/a.pth"], to).pinned
    assert (tmp_path / "a.pth.sha256").read_text() == f"{SHA256}  a.pth\n"
    to.write_bytes(b"damaged")
    fetch([f"{server.url}/a.pth"], to)
    assert to.read_bytes() == CONTENT
    to.unlink()
    server.files["/a.pth"] = b"changed"
    with pytest.raises(RunFailed, match=rf"{SHA256} was expected as at the first download \(remove \S+a\.pth\.sha256"):
        fetch([f"{server.url}/a.pth"], to)
    assert not to.exists()
    (tmp_path / "a.pth.sha256").write_text("?")
    with pytest.raises(UserError, match=r"a\.pth\.sha256: holds no SHA-256"):
        fetch([f"{server.url}/a.pth"], to)


def test_an_existing_file_is_kept(server: Server, tmp_path: Path) -> None:
    to = tmp_path / "a.pth"
    to.write_bytes(b"mine")
    assert fetch([f"{server.url}/a.pth"], to).url == ""
    assert to.read_bytes() == b"mine"
    fetch([f"{server.url}/a.pth"], to, sha256=SHA256)
    assert to.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_web_page_is_refused(server: Server, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(RunFailed, match="sends a web page"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert not (tmp_path / "a.pth.sha256").exists()


def test_schemes_of_addresses(tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(CONTENT)
    assert fetch([(tmp_path / "there.pth").as_uri()], tmp_path / "a.pth").sha256 == SHA256
    for url, message in (
        ("ftp://127.0.0.1/a", "is not an https, http or file address"),
        ("a.pth", "is not an https, http or file address"),
        ("http://127.0.0.1:port/a", "is not an address"),
        ((tmp_path / "none.pth").as_uri(), "there is no such file"),
    ):
        with pytest.raises(RunFailed, match=message):
            fetch([url], tmp_path / "b.pth")


def test_concurrent_requests_download_once(server: Server, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: fetch([f"{server.url}/a.pth"], tmp_path / "a.pth"), range(4)))
    assert {file.sha256 for file in files} == {SHA256}
    assert len(server.requests) == 1


def test_concurrent_downloads_without_locks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: fetch([f"{server.url}/a.pth"], tmp_path / "a.pth"), range(4)))
    assert {file.sha256 for file in files} == {SHA256}
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "a.pth.sha256"}


def tar(files: dict[str, bytes], compression: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as archive:
        for name, file in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(file)
            archive.addfile(entry, io.BytesIO(file))
        link = tarfile.TarInfo("teachers/link.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return content.getvalue()


TEACHERS = {f"./teachers/{name}/last.pth": CONTENT for name in "ab"} | {"../../outside.pth": b"outside"}


@pytest.mark.parametrize("compression", ["", "gz"])
def test_members_of_an_archive_need_one_download(server: Server, tmp_path: Path, compression: str) -> None:
    server.files["/all.tar"] = tar(TEACHERS, compression)
    for name in ("a", "b"):
        fetch([f"{server.url}/all.tar"], tmp_path / f"{name}.pth", member=f"teachers/{name}/last.pth", sha256=SHA256)
        assert (tmp_path / f"{name}.pth").read_bytes() == CONTENT
    fetch([f"{server.url}/all.tar"], tmp_path / "o.pth", member="../../outside.pth")
    assert (tmp_path / "o.pth").read_bytes() == b"outside"
    assert not (tmp_path / "../../outside.pth").exists()
    for member, hint in (
        ("teachers/a/lst.pth", "there is 'teachers/a/last.pth'"),
        ("teachers/link.pth", "has no file"),
    ):
        with pytest.raises(RunFailed, match=hint):
            fetch([f"{server.url}/all.tar"], tmp_path / "c.pth", member=member)
    assert not (tmp_path / "c.pth").exists()
    assert len(server.requests) == 1


def test_an_archive_is_pinned(server: Server, tmp_path: Path) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/a/last.pth")
    (tmp_path / "all.tar").write_bytes(b"damaged")
    server.files["/all.tar"] = tar({"teachers/b/last.pth": b"changed"})
    with pytest.raises(RunFailed, match="was expected as at the first download"):
        fetch([f"{server.url}/all.tar"], tmp_path / "b.pth", member="teachers/b/last.pth")
    assert not (tmp_path / "b.pth").exists()


def test_every_mirror_may_have_another_archive(server: Server, tmp_path: Path) -> None:
    for name, member in (
        ("cut", tar(TEACHERS)[:2000]),
        ("old", tar({"a.pth": b"old"})),
        ("new", tar({"a.pth": CONTENT})),
    ):
        server.files[f"/{name}/all.tar"] = member
    mirrors = [f"{server.url}/{name}/all.tar" for name in ("cut", "old", "new")]
    assert fetch(mirrors, tmp_path / "a.pth", member="a.pth", sha256=SHA256).url == mirrors[2]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content",
    [b"no archive" * 100, tar(TEACHERS, "gz")[:-600], tar(TEACHERS)[:4000], b"\x1f\x8b" + b"?" * 500],
    ids=["garbage", "compressed and cut", "cut", "garbage that says it is gzip"],
)
def test_a_damaged_archive(server: Server, tmp_path: Path, content: bytes) -> None:
    server.files["/all.tar"] = content
    with pytest.raises(RunFailed, match="is not a complete tar archive"):
        fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/b/last.pth")
    assert {path.name for path in tmp_path.iterdir()} == {".a.pth.lock", ".all.tar.lock"}


def test_a_member_larger_than_the_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(UserError, match=r"last\.pth has 1,024,000 bytes, and 9 are free"):
        fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/a/last.pth")


def test_a_folder_that_is_not_writable(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read or written"):
        fetch([f"{server.url}/a.pth"], tmp_path / "file" / "a.pth")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("member", [None, "teachers/a/last.pth"])
def test_a_full_disk_is_not_an_error_of_the_mirrors(
    server: Server, tmp_path: Path, member: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    monkeypatch.setattr(download.secrets, "token_hex", lambda _: "0")
    (tmp_path / ".all.tar.0.tmp").symlink_to("/dev/full")
    name = "all.tar" if member is None else "a.pth"
    with pytest.raises(UserError, match=rf"{name}: cannot be read or written \({os.strerror(errno.ENOSPC)}\)"):
        fetch([f"{server.url}/all.tar"], tmp_path / name, member=member)
    assert len(server.requests) == 1


def test_import_is_light() -> None:
    heavy = {"torch", "numpy", "pydantic", "yaml", "pooch", "requests"}
    code = f"import sys, kd_bench.utils.download; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
