"""Shards make the same batches as the same images in files, and their faults are named."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import registry
from kd_bench.data.sources import _shards
from kd_bench.data.streaming import StreamLoader, StreamTestLoader
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError
from tests.data import photos

IMAGENET = Dataset(name="imagenet")
PIPELINE = Pipeline.model_validate_json(json.dumps({"size": 32} | photos.EVERYTHING))


def pack(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def images(folder: Path) -> list[tuple[str, Path]]:
    """The images of a split with their classes, in an order that mixes the classes."""
    labelled_files = [(file.parent.name, file) for file in sorted(folder.glob("*/*"))]
    return [labelled_files[index] for index in np.random.default_rng(0).permutation(len(labelled_files))]


def by_number(split: list[tuple[str, Path]]) -> Iterator[dict[str, bytes]]:
    """timm's layout: the label's number in a separate file; names without meaning that keep the order."""
    for label, file in split:
        key = f"{photos.CLASSES.index(label)}_{file.stem}"
        yield {f"{key}.cls": key[:1].encode(), f"{key}{file.suffix.lower()}": file.read_bytes()}


def by_json(split: list[tuple[str, Path]]) -> Iterator[dict[str, bytes]]:
    for label, file in split:
        about = {"label": photos.CLASSES.index(label), "filename": file.name}
        yield {f"./{label}{file.name}": file.read_bytes(), f"./{label}{file.stem}.json": json.dumps(about).encode()}


def by_folder(split: list[tuple[str, Path]]) -> Iterator[dict[str, bytes]]:
    for label, file in split:
        yield {f"train/{label}/{file.name}": file.read_bytes(), f"train/{label}/._{file.name}": b"a Mac's"}


FORMS: dict[str, Any] = {
    "imagenet1k-{}-{:04}.tar": ("validation", by_number),
    "{}-{:06}.tar": ("val", by_json),
    "{}/{}.tar": ("test", by_folder),
}


def sharded(tree: Path, to: Path, pattern: str = "imagenet1k-{}-{:04}.tar", each: int = 5) -> Path:
    """Writes the set in ``tree`` as shards of ``each`` samples."""
    test, form = FORMS[pattern]
    for split, name in (("train", "train"), ("val", test)):
        samples = list(form(images(tree / split)))
        for number, start in enumerate(range(0, len(samples), each)):
            members = {key: value for sample in samples[start : start + each] for key, value in sample.items()}
            pack(to / pattern.format(name, number), members)
    return to


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.tree(tmp_path_factory.mktemp("photos") / "mine")


def batches(data: Path, dataset: Dataset = photos.MINE, workers: int = 0) -> list[Batch]:
    splits = registry.list_files(dataset, PIPELINE, data)
    train = StreamLoader(splits, batch_size=8, seed=1, workers=workers)
    test = StreamTestLoader(splits, batch_size=4, workers=workers)
    try:
        return [*train, *test]
    finally:
        train.close()
        test.close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("pattern", FORMS)
def test_batches_are_those_of_the_same_images_as_files(tree: Path, tmp_path: Path, pattern: str) -> None:
    expected = batches(tree.parent)
    sharded(tree, tmp_path / "mine", pattern)
    for workers in (0, 2):
        shard_batches = batches(tmp_path, workers=workers)
        assert len(shard_batches) == len(expected)
        for batch, other in zip(shard_batches, expected, strict=True):
            assert torch.equal(batch.images, other.images) and torch.equal(batch.labels, other.labels)
            assert torch.equal(batch.index, other.index)


def test_imagenet_is_found_in_shards_as_timm_has_it(tree: Path, tmp_path: Path) -> None:
    root = sharded(tree, tmp_path / "imagenet-1k-wds")
    assert registry.locate(IMAGENET, tmp_path) == f"5 shards to train on and 3 to test on in {root}"
    splits = registry.list_files(IMAGENET.model_copy(update={"classes": 2, "test_images": 4}), PIPELINE, tmp_path)
    assert splits.class_names == ("0", "1")
    assert splits.test_labels.tolist() == [0, 0, 1, 1]
    assert splits.train.path(0).parent.parent == root


def test_numbers_are_sorted_as_numbers(tree: Path, tmp_path: Path) -> None:
    image = next(file for _, file in images(tree / "val")).read_bytes()
    for split in ("train", "val"):
        pack(tmp_path / "mine" / f"{split}-0.tar", {f"{n}.{kind}": content for n in (10, 9, 2) for kind, content in
                                                    (("webp", image), ("cls", str(n).encode()))})  # fmt: skip
    assert registry.list_files(photos.MINE, PIPELINE, tmp_path).class_names == ("2", "9", "10")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cats-{}-0000.tar", "dogs-{}-0000.tar"),
         ": cats-train-0000.tar and dogs-train-0000.tar are both shard 0 of train; keep one data set in a folder"),
        (("{}-0.tar", "{}-00.tar"), ": train-0.tar and train-00.tar are both shard 0 of train"),
        (("{}/a1.tar", "{}/b1.tar"), "/train: a1.tar and b1.tar are both shard 1 of train"),
    ],
)  # fmt: skip
def test_shards_with_the_same_number_are_refused(
    tree: Path, tmp_path: Path, names: tuple[str, str], message: str
) -> None:
    samples = list(by_number(images(tree / "val")))
    for split in ("train", "val"):
        for name, members in zip(names, samples, strict=False):
            pack(tmp_path / "mine" / name.format(split), members)
    with pytest.raises(UserError) as caught:
        registry.list_files(photos.MINE, PIPELINE, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mine'}{message}")


def test_numbers_in_one_split_and_names_in_the_other_are_refused(tree: Path, tmp_path: Path) -> None:
    image = next(file for _, file in images(tree / "val")).read_bytes()
    numbers = {f"{n}.{kind}": content for n in range(12) for kind, content in (("webp", image), ("cls", b"%d" % n))}
    pack(tmp_path / "mine" / "train-0.tar", numbers)
    pack(tmp_path / "mine" / "val-0.tar", {f"{n}/{n}.webp": image for n in range(12)})
    with pytest.raises(UserError) as caught:
        registry.list_files(photos.MINE, PIPELINE, tmp_path)
    assert "val-*.tar: the labels of one are numbers, and those of the other are names" in str(caught.value)


def test_the_index_is_built_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sharded(tree, tmp_path / "mine")
    first = batches(tmp_path)
    scan, scanned = _shards._samples, []
    monkeypatch.setattr(_shards, "_samples", lambda shard, number: (scanned.append(shard), scan(shard, number))[1])
    assert torch.equal(batches(tmp_path)[0].images, first[0].images) and not scanned
    for kept in (tmp_path / "cache" / "shards").iterdir():
        kept.write_bytes(kept.read_bytes()[:-40])
    assert torch.equal(batches(tmp_path)[0].images, first[0].images) and len(scanned) == 8
    pack(root / "imagenet1k-validation-0002.tar", next(iter(by_number(images(tree / "val")))))
    scanned.clear()
    registry.list_files(photos.MINE, PIPELINE, tmp_path)
    assert {shard.name.split("-")[1] for shard in scanned} == {"validation"}


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def member(path: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number]


def fails(data: Path, dataset: Dataset = photos.MINE) -> str:
    with pytest.raises(UserError) as error:
        batches(data, dataset)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_shards_are_named(tree: Path, tmp_path: Path) -> None:
    root = sharded(tree, tmp_path / "mine")
    shard = root / "imagenet1k-train-0001.tar"
    whole = shard.read_bytes()
    names = [member(shard, number).name for number in range(3)]
    third = member(shard, 2)
    for length, expected in (
        (third.offset_data + third.size // 2, f"{shard}: ends within {names[2]}; it was cut short"),
        (third.offset, f"{shard}: was cut short after {names[1]}"),
        (third.offset + 100, f"{shard}: was damaged after {names[1]}"),
        (0, f"{shard}: is no tar file, or damaged after its beginning"),
    ):
        shard.write_bytes(whole[:length])
        assert fails(tmp_path).startswith(expected), fails(tmp_path)
    shard.write_bytes(whole[: third.offset] + b"x" * 100 + whole[third.offset + 100 :])
    assert fails(tmp_path).startswith(f"{shard}: was damaged after {names[1]}")


def test_a_shard_that_shrinks_while_it_is_read(tree: Path, tmp_path: Path) -> None:
    sharded(tree, tmp_path / "mine")
    splits = registry.list_files(photos.MINE, PIPELINE, tmp_path)
    cut(splits.train.path(3).parent, 600)
    with pytest.raises(UserError, match=r"imagenet1k-train-000\d.tar: ends within .*; it was cut short"):
        for index in range(len(splits.train)):
            splits.train.read(index)


def test_a_corrupt_image_is_named_with_its_shard(tree: Path, tmp_path: Path) -> None:
    root = sharded(tree, tmp_path / "mine")
    shard = root / "imagenet1k-validation-0000.tar"
    spoilt = next(info for info in (member(shard, 0), member(shard, 1)) if not info.name.endswith("cls"))
    content = bytearray(shard.read_bytes())
    content[spoilt.offset_data : spoilt.offset_data + spoilt.size] = bytes(spoilt.size)
    shard.write_bytes(content)
    assert fails(tmp_path).startswith(f"{shard}/{spoilt.name}: the image cannot be decoded")


def test_what_is_missing_or_wrong(tree: Path, tmp_path: Path) -> None:
    root = sharded(tree, tmp_path / "mine")
    with pytest.raises(UserError, match="has shards, which are read image by image; give the recipe a pipeline"):
        registry.load(photos.MINE, tmp_path)
    middle, last = root / "imagenet1k-train-0002.tar", root / "imagenet1k-train-0004.tar"
    content = middle.read_bytes()
    middle.unlink()
    assert f"{root}: shard 2 is missing, but {last.name} is there" in fails(tmp_path)
    middle.write_bytes(content)
    announced = {"splits": {"train": {"filenames": [f"imagenet1k-train-{number:04}.tar" for number in range(7)]}}}
    (root / "_info.json").write_text(json.dumps(announced))
    assert f"{root}: imagenet1k-train-0005.tar is missing, which _info.json lists for train" in fails(tmp_path)
    (root / "_info.json").write_text("[1]")
    batches(tmp_path)
    (root / "_info.json").write_text("[" * 200_000)
    batches(tmp_path)
    moved = last.rename(tmp_path / "moved.tar")
    last.symlink_to(tmp_path / "nowhere.tar")
    assert fails(tmp_path) == f"{last}: cannot be read (No such file or directory)"
    moved.rename(last)

    image = next(file for _, file in images(tree / "val")).read_bytes()
    for members, expected in (
        ({"a.jpg": image}, "a.jpg has no label: there is no a.cls, and it is in no folder"),
        ({"a.jpg": image, "a.cls": b" "}, "a.cls is empty"),
        ({"a.jpg": image, "a.json": b"{"}, "a.json is no JSON"),
        ({"a.jpg": image, "a.json": b"[" * 200_000}, "a.json is no JSON"),
        ({"a.jpg": image, "a.cls": b"0", "ant/b.jpg": image}, "ant/b.jpg has the label 'ant'; all must be numbers"),
        ({"a.txt": b"no image"}, "has no images"),
        ({"a.jpg": image, "a.cls": b"0" * (1 << 21)}, "a.cls has 2,097,152 bytes, too many for a label"),
        ({"a.jpg": image, "a.cls": b"7"}, "has no class '0'"),
    ):
        other = tmp_path / "other"
        pack(other / "train-0.tar", members)
        pack(other / "val-0.tar", {f"{n}.{kind}": text for n in (0, 7) for kind, text in
                                   (("jpg", image), ("cls", str(n).encode()))})  # fmt: skip
        message = fails(tmp_path, Dataset(name="folder", path="other"))
        assert expected in message and str(other) in message, message
    (other / "val-0.tar").unlink()
    assert "has shards of train, but none of test or val" in fails(tmp_path, Dataset(name="folder", path="other"))
