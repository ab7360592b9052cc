import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.data.sources import tiny_imagenet
from kd_bench.utils.errors import RunFailed, UserError
from tests.data import make
from tests.data.sources.test_tiny_imagenet import CLASSES, tree

TINY = Dataset(name="tiny_imagenet")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served at."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def publish(content: bytes, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishes Tiny-ImageNet's archive on the server."""
    (server[0] / "tiny.zip").write_bytes(content)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", f"{server[1]}/tiny.zip")
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(content).hexdigest())


def zipped(*names: str, root: Path | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name in names:
            content.writestr(name, "evil")
        for file in sorted(root.rglob("*")) if root else []:
            content.write(file, file.relative_to(root.parent) if root else None)
    return buffer.getvalue()


def test_tiny_imagenet(tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(zipped(root=tree(tmp_path / "original" / tiny_imagenet.BASE)), server, monkeypatch)
    data = tmp_path / "data"
    registry.download(TINY, data)
    assert registry.load(TINY, data).class_names == CLASSES
    assert [path.name for path in (data / "tiny_imagenet").iterdir()] == [tiny_imagenet.BASE]
    (server[0] / "tiny.zip").unlink()
    registry.download(TINY, data)  # the set is there, so nothing is downloaded


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "tiny-imagenet-200/../../evil", "other/evil", "tiny-imagenet-200/..\\evil"]
)
def test_an_archive_stays_in_its_folder(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    publish(zipped("tiny-imagenet-200/fine", name), server, monkeypatch)
    with pytest.raises(RunFailed, match="has files outside of the folder tiny-imagenet-200, and is not unpacked"):
        registry.download(TINY, tmp_path / "data")
    assert not list(tmp_path.rglob("*evil"))
    assert [path.name for path in (tmp_path / "data" / "tiny_imagenet").iterdir()] == ["tiny.zip"]


def test_an_archive_may_not_fill_the_disk(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(zipped("tiny-imagenet-200/fine"), server, monkeypatch)
    monkeypatch.setattr("kd_bench.data.sources._archives._MOST_BYTES", 3)
    with pytest.raises(RunFailed, match="would unpack to more than"):
        registry.download(TINY, tmp_path / "data")


def test_another_file_than_the_published_one_is_refused(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(zipped("tiny-imagenet-200/fine"), server, monkeypatch)
    (server[0] / "tiny.zip").write_bytes(b"<html>hotel wifi</html>")
    with pytest.raises(
        RunFailed, match=r"tiny\.zip: the file received is not the published one, by its checksum; try again$"
    ):
        registry.download(TINY, tmp_path / "data")
    assert not (tmp_path / "data" / "tiny_imagenet" / tiny_imagenet.BASE).exists()


def test_no_network_is_one_sentence(tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", f"{server[1]}/gone.zip")
    with pytest.raises(RunFailed, match=r"gone\.zip: cannot be downloaded \(.*File not found\); try again later"):
        registry.download(TINY, tmp_path / "data")
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", "http://127.0.0.1:1/tiny.zip")
    with pytest.raises(RunFailed, match=r"cannot be downloaded \(.*Connection refused\)"):
        registry.download(TINY, tmp_path / "data")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=f"^{tmp_path / 'data'}.*: cannot be written"):
        registry.download(TINY, tmp_path / "data")


def test_half_a_set_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="has no folder 'val'; remove it and unpack"):
        registry.download(TINY, tmp_path)


@pytest.mark.parametrize(("name", "base"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar(tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, name: str, base: str) -> None:
    from torchvision import datasets

    (make.pickle_set if name == "cifar100" else make.pickle_set_of_ten)(tmp_path / "original" / base, monkeypatch)
    archive = server[0] / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz") as content:
        content.add(tmp_path / "original" / base, base)
    torchvisions = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    monkeypatch.setattr(torchvisions, "url", f"{server[1]}/{archive.name}")
    monkeypatch.setattr(torchvisions, "filename", archive.name)
    monkeypatch.setattr(torchvisions, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    dataset, data = Dataset(name=name), tmp_path / "data"
    registry.download(dataset, data)
    assert registry.locate(dataset, data) == f"torchvision files in {data / name / base}"
    expected = registry.load(dataset, tmp_path / "original")
    assert registry.load(dataset, data).train_labels.tolist() == expected.train_labels.tolist()
    damaged = sorted((data / name / base).iterdir())[0]
    damaged.write_bytes(b"")
    registry.download(dataset, data)
    assert damaged.stat().st_size


def test_the_hubs_files_will_do(tmp_path: Path) -> None:
    make.parquet_set(tmp_path / "cifar100")
    registry.download(Dataset(name="cifar100"), tmp_path)
    assert registry.locate(Dataset(name="cifar100"), tmp_path).startswith("parquet in")


@pytest.mark.parametrize("name", ["digits", "folder", "imagenet", "parquet"])
def test_what_cannot_be_downloaded_says_where_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} cannot be downloaded by kd-bench: "):
        registry.download(Dataset(name=name), tmp_path)
