"""CIFAR-10-C and CIFAR-100-C, read from small files in the published layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES
from kd_bench.config.data import Dataset
from kd_bench.data import corrupted, published_corruptions, registry
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.published_corruptions import PublishedCorruptions, find_published
from kd_bench.utils.errors import UserError

LABELS = np.array([3, 0, 2, 1, 0, 3, 1, 2, 0, 1])
SIZE = len(LABELS)


def test_set(labels: np.ndarray = LABELS) -> ArrayDataset:
    images = np.arange(SIZE * 3 * 32 * 32).reshape(SIZE, 3, 32, 32).astype(np.uint8)
    return ArrayDataset.from_arrays(images, labels, images, labels)


test_set.__test__ = False  # type: ignore[attr-defined]


def pixels(corruption: str) -> np.ndarray:
    """(50, 32, 32, 3): the blue of image i at severity s is 20 s + i, the red is the number of the corruption."""
    array = np.zeros((len(SEVERITIES) * SIZE, 32, 32, 3), np.uint8)
    array[..., 0] = CORRUPTIONS.index(corruption)
    for severity in SEVERITIES:
        for index in range(SIZE):
            array[(severity - 1) * SIZE + index, ..., 2] = 20 * severity + index
    array[:, 0, 31, 1] = 77  # a corner, so that height and width are not mixed up
    return array


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    for corruption in CORRUPTIONS:
        np.save(folder / f"{corruption}.npy", pixels(corruption))
    np.save(folder / "labels.npy", np.tile(LABELS, len(SEVERITIES)))
    return tmp_path


def settings(**changes: Any) -> Dataset:
    return Dataset(name="cifar100", labels="fine", **changes)


def selected(data: Path, monkeypatch: pytest.MonkeyPatch, order: np.ndarray | None = None, **changes: Any) -> Any:
    """What is found for a trial that selects images of the test set, whose files have the images in this order."""
    whole = test_set(LABELS if order is None else LABELS[order])
    monkeypatch.setattr(registry, "load", lambda *_: whole)
    chosen = settings(**changes)
    images = whole if chosen.classes is None else whole.take_classes(chosen.classes)
    return find_published(chosen, images.subset(None, chosen.test_images), data)


def test_blocks_of_severities(data: Path) -> None:
    corruptions = find_published(settings(), test_set(), data)
    assert isinstance(corruptions, PublishedCorruptions)
    assert (corruptions.source, corruptions.origin, corruptions.libraries) == ("published", "CIFAR-100-C", {})
    assert corruptions.labels.tolist() == LABELS.tolist() and corruptions.labels.dtype == torch.int64
    digests = set()
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            images, digest = corruptions.copy(corruption, severity)
            assert images.shape == (SIZE, 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
            assert images[:, 2, 5, 5].tolist() == [20 * severity + index for index in range(SIZE)]
            assert set(images[:, 0].flatten().tolist()) == {CORRUPTIONS.index(corruption)}
            assert (images[:, 1, 0, 31] == 77).all() and int(images[:, 1].count_nonzero()) == SIZE
            digests.add(digest)
    assert len(digests) == len(CORRUPTIONS) * len(SEVERITIES)
    assert isinstance(corrupted.find(settings(), test_set(), data), PublishedCorruptions)


def test_images_of_the_first_classes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corruptions = selected(data, monkeypatch, classes=2)
    rows = [index for index, label in enumerate(LABELS) if label < 2]
    assert corruptions.labels.tolist() == LABELS[rows].tolist()
    assert corruptions.copy("fog", 2).images[:, 2, 0, 0].tolist() == [40 + row for row in rows]


def test_some_images_of_each_class(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corruptions = selected(data, monkeypatch, test_images=4)
    assert corruptions.rows.tolist() == [0, 1, 2, 3] and corruptions.labels.tolist() == [3, 0, 2, 1]
    corruptions = selected(data, monkeypatch, classes=2, test_images=4)
    assert corruptions.rows.tolist() == [1, 3, 4, 6]
    assert corruptions.copy("fog", 5).images[:, 2, 0, 0].tolist() == [101, 103, 104, 106]


def test_a_test_set_in_another_order(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of the copies are those of the files, so that the accuracy is right; single images are not known."""
    order = np.arange(SIZE)[::-1]
    corruptions = selected(data, monkeypatch, order)
    assert corruptions.labels.tolist() == LABELS.tolist()
    assert selected(data, monkeypatch, order, classes=2).labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert selected(data, monkeypatch, order, test_images=4) is None


def test_other_sets_have_none(data: Path) -> None:
    for other in (Dataset(name="digits"), Dataset(name="cifar10"), Dataset(name="cifar100", labels="coarse")):
        assert find_published(other, test_set(), data) is None
    assert find_published(settings(), test_set(), data / "elsewhere") is None
    (data / "CIFAR-100-C").rename(data / "CIFAR-10-C")
    corruptions = find_published(Dataset(name="cifar10"), test_set(), data)
    assert corruptions is not None and corruptions.origin == "CIFAR-10-C"
    assert find_published(settings(), test_set(), data) is None


def refused(data: Path, corruption: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        corruptions = find_published(settings(), test_set(), data)
        assert corruptions is not None and corruption is not None
        corruptions.copy(corruption, 1)
    return str(caught.value)


def test_files_that_are_missing_or_of_other_images_are_sentences(data: Path) -> None:
    folder = data / "CIFAR-100-C"
    (folder / "fog.npy").unlink()
    assert refused(data) == (
        f"{folder}: has no file fog.npy; unpack CIFAR-100-C again, or remove the folder to have the corrupted images "
        "made"
    )
    np.save(folder / "fog.npy", pixels("fog"))
    file = folder / "labels.npy"
    np.save(file, np.tile(LABELS, 4))
    assert refused(data) == f"{file}: should be (50,) whole numbers, not (40,) of int64"
    np.save(file, np.tile(LABELS, 5).astype(float))
    assert refused(data) == f"{file}: should be (50,) whole numbers, not (50,) of float64"
    others = f"{file}: its labels are not those of the test images of cifar100 (fine labels); unpack the files again"
    np.save(file, np.tile(LABELS + 1, 5))
    assert refused(data) == others
    np.save(file, np.concatenate([np.tile(LABELS, 4), LABELS[::-1]]))
    assert refused(data) == others


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((50, 32, 32, 3), np.float32), "should be (50, 32, 32, 3) of uint8, not (50, 32, 32, 3) of float32"),
        (np.zeros((50, 3, 32, 32), np.uint8), "should be (50, 32, 32, 3) of uint8, not (50, 3, 32, 32) of uint8"),
        (np.zeros((10, 32, 32, 3), np.uint8), "should be (50, 32, 32, 3) of uint8, not (10, 32, 32, 3) of uint8"),
        (np.array([{}] * 3, dtype=object), "cannot be read as .npy: "),
        (b"", "cannot be read as .npy: "),
        (b"\x93NUMPY\x01\x00", "cannot be read as .npy: "),
    ],
)
def test_other_content_is_a_sentence(data: Path, array: Any, sentence: str) -> None:
    file = data / "CIFAR-100-C" / "snow.npy"
    if isinstance(array, bytes):
        file.write_bytes(array)
    else:
        np.save(file, array, allow_pickle=True)
    message = refused(data, "snow")
    assert message.startswith(f"{file}: {sentence}") and "\n" not in message


def test_what_is_no_regular_file_is_a_sentence(data: Path) -> None:
    file = data / "CIFAR-100-C" / "snow.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    assert refused(data, "snow").startswith(f"{file}: cannot be read as .npy: ")
    file.unlink()
    os.mkfifo(file)
    assert refused(data, "snow") == f"{file}: cannot be read as .npy: is a named pipe, not a regular file"
    file.unlink()
    with open(file, "wb") as archive:
        np.savez(archive, a=np.zeros(3))
    assert refused(data, "snow") == f"{file}: should be an .npy file with one array, and is an archive of several"


def test_folders_are_those_of_known_sets() -> None:
    assert all(registry.spec(name).image_size == 32 for name in published_corruptions.FOLDERS)
