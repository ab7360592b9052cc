import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_bench.data import decoded_cache
from kd_bench.data.decoded_cache import Allocate, Decoded
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import cache_folder

IMAGES = np.arange(4 * 3 * 8 * 8, dtype=np.uint8).reshape(4, 3, 8, 8)
LABELS = np.array([[0, 1], [1, 0], [2, 1], [0, 0]])
NAMES = (("a", "b", "c"), ("x", "y"))


class Decoder:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, allocate: Allocate) -> Decoded:
        self.calls += 1
        images = allocate(IMAGES.shape)
        images[:] = IMAGES
        return Decoded(images, LABELS.copy(), NAMES)


def load(source: Path, decode: Decoder, name: str = "set") -> Decoded:
    return decoded_cache.load(name, decoded_cache.file_fingerprint([source]), decode)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"encoded")
    return path


def same(decoded: Decoded) -> bool:
    equal = np.array_equal(decoded.images, IMAGES) and np.array_equal(decoded.labels, LABELS)
    return equal and decoded.class_names == NAMES and decoded.images.dtype == np.uint8


def entry(suffix: str) -> Path:
    [path] = cache_folder().glob(f"*{suffix}")
    return path


def test_decodes_once_and_maps_the_file(source: Path) -> None:
    decode = Decoder()
    for _ in range(3):
        decoded = load(source, decode)
        assert same(decoded)
        assert isinstance(decoded.images, np.memmap)
    assert decode.calls == 1


def test_writing_into_the_images_changes_nobody_elses(source: Path) -> None:
    decode = Decoder()
    torch.from_numpy(load(source, decode).images).zero_()
    assert same(load(source, decode))
    assert decode.calls == 1


@pytest.mark.parametrize("change", ["size", "mtime", "name", "set"])
def test_another_source_is_another_entry(source: Path, change: str) -> None:
    decode, name = Decoder(), "set"
    load(source, decode, name)
    if change == "size":
        stat = source.stat()
        source.write_bytes(b"encoded!")
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "mtime":
        os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    elif change == "name":
        source = source.rename(source.with_name("other"))
    else:
        name = "other-set"
    assert same(load(source, decode, name))
    assert decode.calls == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_into_something_else(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize("suffix", ["-images.npy", "-labels.npy", ".json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, turn_into_something_else, Path.unlink])
def test_damaged_entry_is_built_again(source: Path, suffix: str, damage: Callable[[Path], None]) -> None:
    decode = Decoder()
    load(source, decode)
    if suffix == ".json" and damage is truncate:
        damage(entry(suffix))  # the last byte is a line's end: take one that matters too
    damage(entry(suffix))
    assert same(load(source, decode))
    assert decode.calls == 2
    assert same(load(source, decode))
    assert decode.calls == 2


def test_folder_that_cannot_be_written_is_no_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    decode = Decoder()
    assert same(load(source, decode))
    assert decode.calls == 1


@pytest.mark.parametrize("at", ["images", "labels"])
def test_full_disk_is_no_error_and_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "posix_fallocate") if at == "images" else (np, "save")), full)
    assert same(load(source, Decoder()))
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]


def test_images_that_fit_nowhere_are_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_CACHE", str(source / "cache"))
    with pytest.raises(
        UserError, match=r"^.*: 931322\.6 GiB of decoded images fit neither there .* in KD_BENCH_CACHE$"
    ):
        decoded_cache.load("set", [], lambda allocate: Decoded(allocate((10**6, 10**9)), LABELS, NAMES))


def test_the_decoder_writes_into_the_file_itself(source: Path) -> None:
    def decode(allocate: Allocate) -> Decoded:
        images = allocate(IMAGES.shape)
        assert isinstance(images, np.memmap)
        assert not images.any()
        images[:] = IMAGES
        return Decoded(images, LABELS, NAMES)

    assert same(decoded_cache.load("set", [], decode))


def test_a_large_file_is_checked_in_blocks(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "_BLOCK", 64)
    monkeypatch.setattr(decoded_cache, "_MOST_BLOCKS", 4)
    decode = Decoder()
    assert same(load(source, decode))
    assert same(load(source, decode))
    path = entry("-images.npy")
    content = path.read_bytes()
    for damage, times in ((content[:-1], 2), (bytes(len(content)), 3), (content[:-64] + bytes(64), 4)):
        path.write_bytes(damage)
        assert same(load(source, decode))
        assert decode.calls == times


def test_decoding_errors_pass_and_leave_nothing(source: Path) -> None:
    def fail(allocate: Allocate) -> Decoded:
        allocate(IMAGES.shape)
        raise UserError("damaged")

    with pytest.raises(UserError, match=r"^damaged$"):
        decoded_cache.load("set", decoded_cache.file_fingerprint([source]), fail)
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]
    assert same(load(source, Decoder()))


def test_leftovers_of_a_killed_process_are_removed(source: Path) -> None:
    load(source, Decoder())
    path = entry("-images.npy")
    left = path.with_name(f".{path.name}.0123456789ab.tmp")
    left.write_bytes(b"half")
    empty(path)
    load(source, Decoder())
    assert not left.exists()


def test_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("KD_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/kd-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "kd-bench"


RACER = """
import sys, time, zlib
from pathlib import Path
import numpy as np
from kd_bench.data import decoded_cache

source, log, locked = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "locked"
if not locked:
    sys.modules["fcntl"] = None  # as on a system without it

def decode(allocate):
    with open(log, "a") as file:
        file.write("decoded\\n")
    time.sleep(0.5)
    images = allocate((20_000, 3, 16, 16))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    return decoded_cache.Decoded(images, np.zeros((20_000, 1), np.int64), (("a",),))

print("ready", flush=True)
sys.stdin.readline()
found = decoded_cache.load("set", decoded_cache.file_fingerprint([source]), decode)
print(zlib.crc32(found.images), isinstance(found.images, np.memmap))
"""


@pytest.mark.parametrize("lock", ["locked", "lockless"])
def test_processes_at_once_all_get_whole_images(source: Path, tmp_path: Path, lock: str) -> None:
    log = tmp_path / "log"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(source), str(log), lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = {racer.communicate(timeout=60)[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 5
    assert len(outputs) == 1
    assert outputs.pop().endswith(" True\n")
    decoded = log.read_text().count("decoded")
    assert decoded == 1 if lock == "locked" else decoded > 1
    assert not list(cache_folder().glob("*.tmp"))
    assert not list(cache_folder().glob(".*.tmp"))
