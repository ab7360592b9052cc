"""Downloads from a server that misbehaves on demand."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
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
    """What it has, and how it behaves."""

    def __init__(self) -> None:
        self.files = {"/a.pth": CONTENT}
        self.etag: str | None = '"1"'
        self.ranges = True
        self.kind = "application/octet-stream"
        self.cut_after: list[int] = []  # bytes of the answers to come
        self.errors: list[int] = []  # instead of the answers to come
        self.meanwhile: Callable[[], None] = lambda: None  # between two answers
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.asked.append((self.path, asked))
                if self.path not in server.files:
                    self.send_error(404)
                    return
                if server.errors:
                    self.send_error(server.errors.pop(0))
                    return
                content = server.files[self.path]
                first = 0
                if asked and server.ranges and self.headers.get("If-Range") == server.etag:
                    first = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if first else 200)
                self.send_header("Content-Type", server.kind)
                self.send_header("Content-Length", str(len(content) - first))
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                if server.etag:
                    self.send_header("ETag", server.etag)
                self.end_headers()
                rest = content[first:]
                if server.cut_after:
                    rest = rest[: server.cut_after.pop(0)]
                    self.close_connection = True
                server.meanwhile()
                self.wfile.write(rest)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has heard enough
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    to = tmp_path / "new" / "a.pth"
    found = fetch([f"{server.url}/a.pth"], to, sha256=SHA256, progress=lambda *step: told.append(step))
    assert (found.path, found.sha256, found.url, found.pinned) == (to, SHA256, f"{server.url}/a.pth", False)
    assert to.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert {path.name for path in to.parent.iterdir()} == {"a.pth", ".a.pth.lock"}
    fetch([f"{server.url}/a.pth"], to, sha256=SHA256)
    assert len(server.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000] * 6  # more often than a server that gives nothing new is asked
    fetch([f"{server.url}/a.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={count}00000-" for count in range(1, 7))]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_download_that_was_given_up_goes_on_the_next_time(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.errors = [100_000], []
    server.meanwhile = lambda: server.errors.extend([503] * download.ATTEMPTS)
    with pytest.raises(RunFailed, match="the server answers 503"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
    server.errors, server.meanwhile = [], lambda: None
    assert fetch([f"{server.url}/a.pth"], tmp_path / "a.pth").sha256 == SHA256
    assert server.asked[-1][1] == "bytes=100000-"


def test_a_broken_connection_is_no_fault_of_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> bytes:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(download.http.client.HTTPResponse, "read", read)
        with pytest.raises(RunFailed, match=r"the connection was cut off \(broken\)"):
            fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert len(server.asked) == download.ATTEMPTS


def test_a_server_that_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, [1000] * 50
    with pytest.raises(RunFailed, match="the connection was cut off"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert len(server.asked) == 1 + download.ATTEMPTS


def test_a_file_that_changes_on_the_way(server: Server, tmp_path: Path) -> None:
    def change() -> None:
        server.etag, server.files["/a.pth"] = '"2"', CONTENT[::-1]

    server.cut_after, server.meanwhile = [100_000], change
    fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("how", ["another version", "no ranges", "another mirror", "no version"])
def test_what_cannot_be_taken_up_begins_anew(server: Server, tmp_path: Path, how: str) -> None:
    server.files["/b.pth"] = CONTENT
    (tmp_path / "a.pth.part").write_bytes(b"something else" * 1000)
    (tmp_path / "a.pth.part.json").write_text(f'{{"url": "{server.url}/a.pth", "version": "\\"0\\""}}')
    if how == "no ranges":
        server.etag, server.ranges = '"0"', False
    if how == "no version":
        server.etag = None
    if how == "another mirror":
        server.etag = '"0"'
    name = "b" if how == "another mirror" else "a"
    fetch([f"{server.url}/{name}.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    server.files["/bad.pth"] = b"not it"
    mirrors = [f"{server.url}/{name}.pth" for name in ("none", "bad", "a")]
    assert fetch(mirrors, tmp_path / "a.pth", sha256=SHA256).url == mirrors[2]
    with pytest.raises(RunFailed) as caught:
        fetch([*mirrors[:2], "http://127.0.0.1:1/a.pth"], tmp_path / "b.pth", sha256=SHA256)
    message = str(caught.value)
    assert f"{mirrors[0]}: the server answers 404" in message
    assert f"{mirrors[1]}: its SHA-256 is {hashlib.sha256(b'not it').hexdigest()}, and {SHA256} was expected" in message
    assert "http://127.0.0.1:1/a.pth: cannot be reached" in message
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


def test_a_file_that_somebody_has_put_there_is_kept(server: Server, tmp_path: Path) -> None:
    to = tmp_path / "a.pth"
    to.write_bytes(b"mine")
    assert fetch([f"{server.url}/a.pth"], to).url == ""
    assert to.read_bytes() == b"mine"
    fetch([f"{server.url}/a.pth"], to, sha256=SHA256)
    assert to.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_page_is_no_file(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(RunFailed, match="gives a web page"):
        fetch([f"{server.url}/a.pth"], tmp_path / "a.pth")
    assert not (tmp_path / "a.pth.sha256").exists()


def test_addresses(tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(CONTENT)
    assert fetch([(tmp_path / "there.pth").as_uri()], tmp_path / "a.pth").sha256 == SHA256
    for url, said in (
        ("ftp://127.0.0.1/a", "is no https, http or file address"),
        ("a.pth", "is no https, http or file address"),
        ("http://127.0.0.1:port/a", "is no address"),
        ((tmp_path / "none.pth").as_uri(), "cannot be reached"),
    ):
        with pytest.raises(RunFailed, match=said):
            fetch([url], tmp_path / "b.pth")


def test_many_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch([f"{server.url}/a.pth"], tmp_path / "a.pth"), range(4)))
    assert {one.sha256 for one in found} == {SHA256}
    assert len(server.asked) == 1


def test_without_locks_nobody_shares_what_is_on_its_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch([f"{server.url}/a.pth"], tmp_path / "a.pth"), range(4)))
    assert {one.sha256 for one in found} == {SHA256}
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
def test_members_of_an_archive_cost_one_download(server: Server, tmp_path: Path, compression: str) -> None:
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
    assert len(server.asked) == 1


def test_an_archive_is_pinned(server: Server, tmp_path: Path) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/a/last.pth")
    (tmp_path / "all.tar").write_bytes(b"damaged")
    server.files["/all.tar"] = tar({"teachers/b/last.pth": b"changed"})
    with pytest.raises(RunFailed, match="was expected as at the first download"):
        fetch([f"{server.url}/all.tar"], tmp_path / "b.pth", member="teachers/b/last.pth")
    assert not (tmp_path / "b.pth").exists()


def test_the_next_mirrors_archive_is_not_taken_for_the_first(server: Server, tmp_path: Path) -> None:
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
    with pytest.raises(RunFailed, match="is no whole tar archive"):
        fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/b/last.pth")
    assert {path.name for path in tmp_path.iterdir()} == {".a.pth.lock", ".all.tar.lock"}


def test_a_member_larger_than_the_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(UserError, match=r"last\.pth has 1,024,000 bytes, and 9 are free"):
        fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="teachers/a/last.pth")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch([f"{server.url}/a.pth"], tmp_path / "file" / "a.pth")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("member", [None, "teachers/a/last.pth"])
def test_a_full_disk_is_no_fault_of_the_mirrors(server: Server, tmp_path: Path, member: str | None) -> None:
    server.files["/all.tar"] = tar(TEACHERS)
    (tmp_path / "all.tar.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"all\.tar\.part: cannot be written \({os.strerror(errno.ENOSPC)}\)"):
        fetch([f"{server.url}/all.tar"], tmp_path / ("all.tar" if member is None else "a.pth"), member=member)
    assert len(server.asked) == 1


def test_it_is_light() -> None:
    code = (
        "import sys, kd_bench.utils.download; print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
