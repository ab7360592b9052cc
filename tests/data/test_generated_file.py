"""Generated images stay in their file, whose checksum is kept and whose headers are checked."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.data import generated_file
from kd_bench.data.generated import GeneratedImages
from kd_bench.data.generated_file import check_arrays, checksum, read_arrays
from kd_bench.utils.errors import UserError
from tests.data.generated_images import write_images


def is_mapped(array: Any) -> bool:
    """Whether the values of an array are in a file."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize(
    ("save", "mapped"),
    [
        (np.savez, True),
        (np.savez_compressed, False),
        (
            lambda file, image, label: np.savez(file, label=label.astype(np.uint8), image=np.asfortranarray(image)),
            False,
        ),
    ],
    ids=["stored", "compressed", "fortran"],
)
def test_images_are_read_when_they_are_drawn(save: Callable[..., None], mapped: bool, tmp_path: Path) -> None:
    arrays = write_images(tmp_path / "more.npz", save=save)
    check_arrays(tmp_path / "more.npz", 32)
    images, labels = read_arrays(tmp_path / "more.npz")
    assert is_mapped(images) is mapped
    assert np.array_equal(images, arrays["image"])
    assert np.array_equal(labels, arrays["label"])
    drawn = torch.tensor([17, 3, 3])
    expected = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2)
    assert torch.equal(GeneratedImages(images, labels).read(drawn), expected[drawn])


def test_images_of_further_classes_are_left_out() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(4, 1, 1, 3)
    generated = GeneratedImages(pixels, np.array([1, 5, 0, 1]), classes=2)
    assert len(generated) == 3
    assert generated.labels.tolist() == [1, 0, 1]
    assert generated.read(torch.tensor([1, 2])).flatten(1).tolist() == [[6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:1000], "cannot be read as .npz"),
        (lambda content: b"", "cannot be read as .npz"),
        (
            lambda content: content.replace(b"(20, 32, 32, 3)", b"(20, 32, 32, 9)"),
            "not the length that its header says",
        ),
        (lambda content: content.replace(b"'|u1'", b"'|O8'"), "not the length that its header says"),
        (lambda content: content.replace(b"NUMPY\x01", b"NUMPY\x07"), "has version 7.0 of numpy's format"),
        (lambda content: content.replace(b"image.npy", b"photo.npy"), "the arrays image and label"),
    ],
)
def test_damaged_files_are_named(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    file = tmp_path / "more.npz"
    write_images(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        check_arrays(file, 32)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checksum_of_a_large_file_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(generated_file, "LARGE", 1000)
    computed = []
    monkeypatch.setattr(
        generated_file,
        "sha256",
        lambda file: computed.append(file) or hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    file = tmp_path / "more.npz"
    for content in (b"a" * 2000, b"b" * 2000):
        file.write_bytes(content)
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, 1))  # the time of the last change of the content may be set
        for _ in range(2):
            assert checksum(file) == hashlib.sha256(content).hexdigest()
    assert len(computed) == 2
    file.write_bytes(b"small")
    checksum(file)
    checksum(file)
    assert len(computed) == 4
    for cached in (tmp_path / "cache" / "checksums").iterdir():
        cached.write_text("damaged")
    file.write_bytes(b"c" * 2000)
    assert checksum(file) == hashlib.sha256(b"c" * 2000).hexdigest()
