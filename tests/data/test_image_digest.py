"""What images a trial is from: digests of images and labels, and known sets that must be complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_bench.config.data import Dataset
from kd_bench.data import decoded_cache, registry
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.image_digest import ImageRecord, digest_each
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import cache_folder
from tests.data import photos
from tests.data.make import COARSE, FINE, encode_all, labels, parquet, parquet_set, pickle_set, pixels
from tests.data.sources.test_shards import PIPELINE, sharded

CIFAR = Dataset(name="cifar100")


def arrays(seed: int = 0, **changes: object) -> ArrayDataset:
    random = np.random.default_rng(seed)
    train, test = (random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8) for count in (9, 6))
    fields = {
        "train_images": train,
        "train_labels": np.arange(9) % 3,
        "test_images": test,
        "test_labels": [0, 1, 2] * 2,
    }
    return ArrayDataset.from_arrays(**(fields | changes))  # type: ignore[arg-type]


def test_the_digest_is_that_of_each_image() -> None:
    for size in (32, 72):  # one thread, and several
        images = np.random.default_rng(0).integers(0, 256, (600, 3, size, size), dtype=np.uint8)
        expected = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        assert [bytes(row) for row in digest_each(images)] == expected


def test_every_pixel_and_label_counts_and_the_order_is_apart() -> None:
    first = arrays()
    record = first.record
    assert record == arrays().record and record["kind"] == "pixels"
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = replace(first, train_images=first.train_images[order], train_labels=first.train_labels[order]).record
    assert shuffled["digest"] == record["digest"] and shuffled["order"] != record["order"]
    other_pixel, other_label = first.test_images.clone(), first.train_labels.clone()
    other_pixel[5, 2, 7, 7] ^= 1
    other_label[0] = 1
    changed = [
        replace(first, test_images=other_pixel),
        replace(first, train_labels=other_label),
        replace(first, train_labels=first.train_labels[order]),
        replace(first, train_images=first.test_images, train_labels=first.test_labels,
                test_images=first.train_images, test_labels=first.train_labels),
        replace(first, train_images=first.train_images[:8], train_labels=first.train_labels[:8]),
        replace(first, train_images=first.train_images.view(9, 3, 4, 16)),
    ]  # fmt: skip
    digests = {record["digest"], *(images.record["digest"] for images in changed)}
    assert len(digests) == len(changed) + 1


def test_it_is_of_the_images_that_the_settings_select() -> None:
    whole = arrays()
    known = replace(
        whole,
        train_digests=torch.from_numpy(digest_each(whole.train_images.numpy())),
        test_digests=torch.from_numpy(digest_each(whole.test_images.numpy())),
    )
    parts = [lambda images: images.take_classes(2), lambda images: images.subset(4, 3), lambda images: images]
    for part in parts:
        assert part(known).record == part(whole).record
        assert part(known).record == replace(part(whole), train_digests=None).record
    assert len({part(whole).record["digest"] for part in parts}) == 3


def test_copies_of_a_set_in_different_files_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "png" / "cifar100")
    parquet_set(tmp_path / "webp" / "cifar100", form="WEBP")
    records = [registry.load(CIFAR, tmp_path / name).record for name in ("png", "webp")]
    assert records[0] == records[1]
    pickle_set(tmp_path / "authors" / "cifar-100-python", monkeypatch)
    images = np.concatenate([pixels(12, 0)[::-1]])
    targets = labels(12, 0)[::-1]
    parquet(tmp_path / "turned" / "cifar100" / "train.parquet", encode_all(images), targets)
    parquet(tmp_path / "turned" / "cifar100" / "test.parquet", encode_all(pixels(5, 2)), labels(5, 2))
    authors, turned = (registry.load(CIFAR, tmp_path / name).record for name in ("authors", "turned"))
    assert authors["digest"] == turned["digest"] and authors["order"] != turned["order"]
    assert (len(FINE), len(COARSE)) == (100, 20)
    coarse = registry.load(Dataset(name="cifar100", labels="coarse"), tmp_path / "png").record
    assert coarse["digest"] != records[0]["digest"]


def test_an_entry_of_an_earlier_version_gets_digests_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_set(tmp_path / "cifar100")
    expected = registry.load(CIFAR, tmp_path).record
    monkeypatch.setattr("kd_bench.data.sources.cifar._decode", lambda *_: pytest.fail("it is decoded again"))
    sizes = [entry.size for entry in decoded_cache.entries(cache_folder())]
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")):
        for path in cache_folder().glob("*-digests.npy"):
            damage(path)
        assert registry.load(CIFAR, tmp_path).record == expected
    for path in cache_folder().glob("*.json"):
        record = json.loads(path.read_text())
        del record["checksums"]["digests"]
        path.write_text(json.dumps(record))
        path.with_name(f"{path.stem}-digests.npy").unlink()
    assert registry.load(CIFAR, tmp_path).record == expected
    entries = decoded_cache.entries(cache_folder())
    assert [len(entry.files) for entry in entries] == [4, 4] and [entry.size for entry in entries] == sizes
    monkeypatch.setattr(decoded_cache, "digest_each", None)  # they are computed once
    assert registry.load(CIFAR, tmp_path).record == expected


# --- images that are decoded when they are needed ---


def streamed(data: Path, dataset: Dataset = photos.MINE) -> ImageRecord:
    return registry.list_files(dataset, PIPELINE, data).record


def test_files_have_that_of_their_names_sizes_and_labels(tmp_path: Path) -> None:
    tree = photos.tree(tmp_path / "mine")
    record = streamed(tmp_path)
    assert record["kind"] == "names and sizes" and streamed(tmp_path) == record
    sharded(tree, tmp_path / "shards" / "mine", "{}/{}.tar")
    assert streamed(tmp_path / "shards") == record
    seen = {record["digest"], streamed(tmp_path, photos.MINE.model_copy(update={"classes": 2}))["digest"]}
    file = tree / "train" / "bee" / "003.JPEG"
    moved = file.rename(file.with_name("moved.JPEG"))
    seen.add(streamed(tmp_path)["digest"])
    shutil.move(moved, tree / "train" / "cat")
    seen.add(streamed(tmp_path)["digest"])
    (tree / "val" / "ant" / "000.JPEG").unlink()
    seen.add(streamed(tmp_path)["digest"])
    longer = tree / "val" / "ant" / "001.JPEG"
    (tree / "new").write_bytes(longer.read_bytes() + b"more")
    (tree / "new").replace(longer)
    seen.add(streamed(tmp_path)["digest"])
    assert len(seen) == 6


def test_sizes_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = photos.tree(tmp_path / "mine")
    record = streamed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("kd_bench.data.sources._file_digests.file_sizes", None)
        assert streamed(tmp_path) == record
    shutil.rmtree(cache_folder() / "file-digests")
    listed = registry.list_files(photos.MINE, PIPELINE, tmp_path)
    (tree / "val" / "ant" / "000.JPEG").unlink()
    with pytest.raises(UserError, match=r"val/ant/000.JPEG: cannot be read \(No such file"):
        _ = listed.record


# --- known sets ---


def refused(dataset: Dataset, data: Path, streams: bool = False) -> str:
    with pytest.raises(UserError) as error:
        registry.open_dataset(dataset, PIPELINE if streams else None, data)
    return str(error.value)


def test_a_part_of_a_known_set_is_refused_under_its_name(tmp_path: Path) -> None:
    parquet_set(tmp_path / "cifar100")
    for dataset in (CIFAR, Dataset(name="cifar100", classes=20, train_images=2)):
        message = refused(dataset, tmp_path)
        assert message == (
            f"{tmp_path / 'cifar100'}: has 12 training images, but CIFAR-100 has 50,000; get the whole set, or name "
            f"these images otherwise, as in dataset: {{name: parquet, path: {tmp_path / 'cifar100'}}}"
        )
    otherwise = Dataset(name="parquet", path=str(tmp_path / "cifar100"), size=32, labels="fine_label")
    expected = registry.load(CIFAR, tmp_path).record
    assert registry.open_dataset(otherwise, None, tmp_path).record == expected
    photos.tree(tmp_path / "imagenet")
    message = refused(Dataset(name="imagenet"), tmp_path, streams=True)
    assert message.startswith(
        f"{tmp_path / 'imagenet'}: has 24 training images, but ImageNet (ILSVRC 2012) has 1,281,167"
    )
    assert message.endswith(f"as in dataset: {{name: folder, path: {tmp_path / 'imagenet'}}}")
    assert registry.open_dataset(Dataset(name="folder", path="imagenet"), PIPELINE, tmp_path).record["digest"]


def test_other_images_of_the_right_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "cifar100")
    digest = registry.load(CIFAR, tmp_path).record["digest"]
    known = registry.spec("cifar100")
    small = replace(known, train_size=12, test_size=5, digests=(digest, "0" * 32))
    monkeypatch.setattr(registry, "spec", lambda *_: small)
    assert registry.open_dataset(CIFAR, None, tmp_path).record["digest"] == digest
    assert f"its images or labels are not those of CIFAR-100: their digest is {digest}" not in refused(
        Dataset(name="cifar100", labels="coarse"), tmp_path
    )
    wrong = labels(5, 2)
    wrong[0, 0] = (wrong[0, 0] + 1) % 100
    parquet(tmp_path / "cifar100" / "test-00000-of-00001.parquet", encode_all(pixels(5, 2)), wrong)
    message = refused(CIFAR, tmp_path)
    assert message.startswith(
        f"{tmp_path / 'cifar100'}: its images or labels are not those of CIFAR-100: their digest "
    )
    assert f", not {digest}; " in message
    parquet(tmp_path / "cifar100" / "test-00000-of-00001.parquet", encode_all(pixels(4, 2)), labels(4, 2))
    assert "has 4 test images, but CIFAR-100 has 5; " in refused(CIFAR, tmp_path)


def test_the_digits_are_known(tmp_path: Path) -> None:
    record = registry.open_dataset(Dataset(name="digits"), None, tmp_path).record
    assert (record["digest"],) == registry.spec("digits").digests


@pytest.mark.parametrize(("kind", "number"), [("fine", 0), ("coarse", 1)])
def test_the_real_cifar_100_is_known(real_data: Path, kind: str, number: int) -> None:
    if not (real_data / "cifar100").is_dir():
        pytest.skip("there is no CIFAR-100")
    dataset = Dataset(name="cifar100", labels=kind)
    assert registry.open_dataset(dataset, None, real_data).record["digest"] == registry.spec("cifar100").digests[number]
    part = registry.open_dataset(Dataset(name="cifar100", classes=20, train_images=500), None, real_data)
    assert len(part.train_labels) == 500
