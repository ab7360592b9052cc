"""Downloads from a server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kd_bench import download
from kd_bench.download import fetch
from kd_bench.errors import RunFailed, UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What it has, and how it behaves."""

    def __init__(self) -> None:
        self.files = {"/a.pth": CONTENT}
        self.etag = '"1"'
        self.ranges = True
        self.cut_after: int | None = None  # bytes of an answer, once
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.asked.append((self.path, asked))
                if self.path not in server.files:
                    self.send_error(404)
                    return
                content = server.files[self.path]
                first = 0
                if asked and server.ranges and self.headers.get("If-Range") == server.etag:
                    first = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(content) - first))
                self.send_header("ETag", server.etag)
                self.end_headers()
                rest = content[first:]
                if server.cut_after is not None:
                    rest, server.cut_after = rest[: server.cut_after], None
                    self.close_connection = True
                self.wfile.write(rest)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
    assert {path.name for path in to.parent.iterdir()} == {"a.pth", ".lock"}
    fetch([f"{server.url}/a.pth"], to, sha256=SHA256)
    assert len(server.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000
    fetch([f"{server.url}/a.pth"], tmp_path / "a.pth", sha256=SHA256)
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-"]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["another version", "no ranges", "another mirror"])
def test_what_cannot_be_taken_up_begins_anew(server: Server, tmp_path: Path, how: str) -> None:
    server.files["/b.pth"] = CONTENT
    (tmp_path / "a.pth.part").write_bytes(b"something else" * 1000)
    (tmp_path / "a.pth.part.json").write_text(f'{{"url": "{server.url}/a.pth", "version": "\\"0\\""}}')
    if how == "no ranges":
        server.etag, server.ranges = '"0"', False
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
    with pytest.raises(RunFailed, match="was expected"):
        fetch([f"{server.url}/a.pth"], to)
    assert not to.exists()


@pytest.fixture
def archive(server: Server) -> Server:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("teachers/a/last.pth", "teachers/b/last.pth"):
            entry = tarfile.TarInfo(name)
            entry.size = len(CONTENT)
            tar.addfile(entry, io.BytesIO(CONTENT))
        link = tarfile.TarInfo("teachers/link.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    server.files["/all.tar"] = content.getvalue()
    return server


def test_members_of_an_archive_cost_one_download(archive: Server, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fetch([f"{archive.url}/all.tar"], tmp_path / f"{name}.pth", member=f"teachers/{name}/last.pth", sha256=SHA256)
        assert (tmp_path / f"{name}.pth").read_bytes() == CONTENT
    assert len(archive.asked) == 1
    for member, hint in (
        ("teachers/a/lst.pth", "there is 'teachers/a/last.pth'"),
        ("teachers/link.pth", "has no file"),
    ):
        with pytest.raises(RunFailed, match=hint):
            fetch([f"{archive.url}/all.tar"], tmp_path / "c.pth", member=member)
    assert not (tmp_path / "c.pth").exists()


def test_a_damaged_archive(server: Server, tmp_path: Path) -> None:
    server.files["/all.tar"] = b"no archive" * 100
    with pytest.raises(RunFailed, match="is no whole tar archive"):
        fetch([f"{server.url}/all.tar"], tmp_path / "a.pth", member="a.pth")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch([f"{server.url}/a.pth"], tmp_path / "file" / "a.pth")
