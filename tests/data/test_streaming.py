import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import decoding, file_dataset, registry
from kd_bench.data.streaming import StreamLoader, StreamTestLoader
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError
from tests.data import photos

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the set in ``mine``: 24 training and 15 test images."""
    root = tmp_path_factory.mktemp("photos")
    photos.tree(root / "mine")
    return root


OPEN: list[StreamLoader | StreamTestLoader] = []


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def loader(root: Path, settings: dict[str, Any] | None = None, **arguments: Any) -> StreamLoader:
    OPEN.append(
        stream := StreamLoader(
            photos.list_files(root, **(settings or {})), **({"batch_size": 8, "seed": 1} | arguments)
        )
    )
    return stream


def evaluation(splits: file_dataset.FileDataset, **arguments: Any) -> StreamTestLoader:
    OPEN.append(test := StreamTestLoader(splits, **({"batch_size": 4} | arguments)))
    return test


def epoch(stream: StreamLoader, number: int) -> list[Batch]:
    stream.set_epoch(number)
    return list(stream)


def same(ones: list[Batch], others: list[Batch]) -> bool:
    return len(ones) == len(others) and all(
        (batch.epoch, batch.step) == (other.epoch, other.step)
        and torch.equal(batch.images, other.images)
        and torch.equal(batch.labels, other.labels)
        and torch.equal(batch.index, other.index)
        for batch, other in zip(ones, others, strict=True)
    )


@pytest.fixture
def chunks_of_3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that a small batch, too, is made by several workers."""
    monkeypatch.setattr("kd_bench.data.streaming._CHUNK", 3)
    yield


@pytest.mark.usefixtures("chunks_of_3")
def test_epochs_are_the_same_for_any_number_of_workers_and_after_a_resume(folder: Path) -> None:
    alone = loader(folder, photos.EVERYTHING)
    epochs = [epoch(alone, number) for number in range(3)]
    for workers in (1, 4):
        stream = loader(folder, photos.EVERYTHING, workers=workers)
        assert all(same(epoch(stream, number), epochs[number]) for number in range(3))
    assert same(epoch(loader(folder, photos.EVERYTHING), 2), epochs[2])
    stream = loader(folder, photos.EVERYTHING, workers=2)
    next(iter(stream))  # and stops
    assert same(epoch(stream, 2), epochs[2])
    stream.close()
    assert same(epoch(stream, 1), epochs[1])
    assert not torch.equal(epochs[0][0].images, epochs[1][0].images)
    assert not torch.equal(epoch(loader(folder, photos.EVERYTHING, seed=2), 0)[0].images, epochs[0][0].images)


def test_batches_are_what_the_trainer_takes(folder: Path) -> None:
    stream = loader(folder, {}, batch_size=7)
    batches = epoch(stream, 4)
    assert len(batches) == len(stream) == 3
    for step, batch in enumerate(batches):
        assert (batch.epoch, batch.step) == (4, step)
        assert batch.images.shape == (7, 3, 32, 32) and batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.labels.tolist() == [index // 8 for index in batch.index.tolist()]
    assert len({int(index) for batch in batches for index in batch.index}) == 21
    mixed = epoch(loader(folder, photos.EVERYTHING), 0)
    for batch in mixed:
        assert batch.labels.shape == (8, 3) and batch.labels.dtype == torch.float32
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
    assert len({int(index) for batch in mixed for index in batch.index}) == 8  # of 24, each three times


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_the_global_generators(folder: Path, workers: int) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    epoch(loader(folder, photos.EVERYTHING, workers=workers), 0)
    list(evaluation(photos.list_files(folder), workers=workers))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # type: ignore[index]


def test_an_image_looks_the_same_in_any_batch_and_otherwise_in_each_repeat(folder: Path) -> None:
    def views(batch_size: int, **settings: Any) -> dict[int, list[Tensor]]:
        images: dict[int, list[Tensor]] = {}
        for batch in epoch(loader(folder, {"auto_augment": "rand-m9", **settings}, batch_size=batch_size), 0):
            for index, image in zip(batch.index.tolist(), batch.images, strict=True):
                images.setdefault(index, []).append(image)
        return images

    small, large, repeated = views(4), views(12), views(12, repeats=3)
    assert small.keys() == large.keys() and len(small) == 24
    assert all(torch.equal(small[index][0], large[index][0]) for index in small)
    for index, three in repeated.items():
        assert torch.equal(three[0], small[index][0])
        assert len(three) == 3 and not torch.equal(three[0], three[1]) and not torch.equal(three[1], three[2])


@pytest.mark.parametrize(("micro_batch", "world_size"), [(None, 1), (None, 2), (4, 1), (6, 2), (4, 3), (6, 6)])
def test_processes_have_together_what_one_has(folder: Path, micro_batch: int | None, world_size: int) -> None:
    arguments = {"batch_size": 12, "micro_batch": micro_batch}
    whole = epoch(loader(folder, photos.EVERYTHING, **arguments), 1)
    shards = [
        loader(folder, photos.EVERYTHING, **arguments, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step, batches in enumerate(zip(*(epoch(shard, 1) for shard in shards), strict=True)):
        assert all(len(batch.index) == 12 // world_size for batch in batches)
        shard_positions = [shard._order.positions.tolist() for shard in shards]
        numbers = {
            position: number
            for number, position in enumerate(loader(folder, {}, **arguments)._order.positions.tolist())
        }
        which = [numbers[position] for some in shard_positions for position in some]
        assert sorted(which) == list(range(12))
        for key in ("images", "labels", "index"):
            values = torch.cat([getattr(batch, key) for batch in batches])
            assert torch.equal(values, getattr(whole[step], key)[which])


def test_micro_batches_are_mixed_by_themselves(folder: Path) -> None:
    settings = {"mixup": 1.0, "crop_pct": 0.95}
    plain = epoch(loader(folder, {}, batch_size=12, micro_batch=4), 0)
    for batch, before in zip(epoch(loader(folder, settings, batch_size=12, micro_batch=4), 0), plain, strict=True):
        shares = []
        for some, images in zip(batch.images.chunk(3), before.images.chunk(3), strict=True):
            share = photos.share(some, images)
            torch.testing.assert_close(some, share * images + (1 - share) * images.flip(0), atol=1e-4, rtol=0)
            shares.append(round(share, 3))
        assert len(set(shares)) == 3


def test_colours_are_those_of_pillow(folder: Path) -> None:
    stream = loader(folder, {"size": 40, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}, batch_size=24)
    batch = next(iter(stream))
    order = batch.index.argsort()
    grey = batch.images[order[0]] * torch.tensor(registry.spec("imagenet").std).view(3, 1, 1)
    grey += torch.tensor(registry.spec("imagenet").mean).view(3, 1, 1)
    torch.testing.assert_close(grey[0], grey[1])
    for index, name in enumerate(("000.JPEG", "001.JPEG", "002.png")):
        file = folder / "mine" / "train" / "ant" / name
        assert stream._decoder.files.path(index) == file
        with Image.open(file) as image:
            assert image.mode == ("L", "CMYK", "RGBA")[index]
            assert np.array_equal(
                np.asarray(decoding.decode_image(file.read_bytes())), np.asarray(image.convert("RGB"))
            )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [4, 15, 100])
def test_the_test_set_is_there_once_and_in_order(folder: Path, workers: int, batch_size: int) -> None:
    splits = photos.list_files(folder, crop_pct=0.95)
    test = evaluation(splits, batch_size=batch_size, workers=workers)
    batches = list(test)
    assert len(batches) == len(test) == -(-15 // batch_size)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(15))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), splits.test_labels)
    assert [batch.step for batch in batches] == list(range(len(batches)))
    whole = torch.cat([batch.images for batch in batches])
    shards = [evaluation(splits, batch_size=batch_size, rank=rank, world_size=4) for rank in range(4)]
    indices = torch.cat([batch.index for shard in shards for batch in shard])
    assert sorted(indices.tolist()) == list(range(15))
    assert torch.equal(torch.cat([batch.images for shard in shards for batch in shard]), whole[indices])
    assert all(len(list(shard)) == len(shard) for shard in shards)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """With one bad image of 'bee' (8 to 15) and two that follow each other in 'cat', the last and the first."""
    root = photos.tree(tmp_path / "mine")
    for name in ("bee/003", "cat/007", "cat/000"):
        photos.spoil(root / "train" / f"{name}.JPEG")
    photos.spoil(root / "val" / "bee" / "001.JPEG")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_ends_the_training_with_its_name(spoilt: Path, workers: int) -> None:
    for name in ("cat/007", "cat/000"):
        (spoilt / "mine" / "train" / f"{name}.JPEG").unlink()
    stream = loader(spoilt, batch_size=22, workers=workers)
    with pytest.raises(UserError) as error:
        epoch(stream, 0)
    bad = spoilt / "mine" / "train" / "bee" / "003.JPEG"
    assert str(error.value).startswith(f"{bad}: the image cannot be decoded (")
    assert str(error.value).endswith("); pipeline.corrupt: skip goes on without it") and "\n" not in str(error.value)
    assert list(stream.corrupt) == [bad]
    with pytest.raises(UserError, match=r"bee/001\.JPEG: the image cannot be decoded"):
        list(evaluation(photos.list_files(spoilt), workers=workers))


def test_a_corrupt_image_is_skipped_and_counted(spoilt: Path) -> None:
    settings = {"corrupt": "skip", "auto_augment": "rand-m9"}
    alone = loader(spoilt, settings)
    whole = epoch(alone, 0)
    shown = torch.cat([batch.index for batch in whole]).bincount(minlength=24)
    assert [shown[index].item() for index in (11, 12, 16, 17, 23)] == [0, 2, 0, 3, 0]
    assert shown.sum() == 24 and all(torch.equal(batch.labels, batch.index // 8) for batch in whole)
    train = spoilt / "mine" / "train"
    assert list(alone.corrupt) == [train / "bee/003.JPEG", train / "cat/000.JPEG", train / "cat/007.JPEG"]
    assert all(reason.startswith("cannot be decoded (") for reason in alone.corrupt.values())
    views = torch.cat([batch.images[batch.index == 12] for batch in whole])
    assert not torch.equal(views[0], views[1])
    for workers in (1, 3):
        stream = loader(spoilt, settings, workers=workers)
        assert same(epoch(stream, 0), whole) and stream.corrupt == alone.corrupt


def test_a_corrupt_test_image_is_left_out_and_counted(spoilt: Path) -> None:
    test = evaluation(photos.list_files(spoilt, corrupt="skip"))
    batches = list(test)
    assert [len(batch.index) for batch in batches] == [4, 3, 4, 3]
    assert torch.cat([batch.index for batch in batches]).tolist() == [index for index in range(15) if index != 6]
    assert all(len(batch.images) == len(batch.labels) == len(batch.index) for batch in batches)
    assert list(test.corrupt) == [spoilt / "mine" / "val" / "bee" / "001.JPEG"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_without_a_good_image_and_a_file_that_is_gone_are_never_skipped(tmp_path: Path, workers: int) -> None:
    root = photos.tree(tmp_path / "mine", train=4)
    for file in (root / "train" / "bee").iterdir():
        photos.spoil(file)
    with pytest.raises(UserError, match=r"bee: has no image that can be decoded$"):
        epoch(loader(tmp_path, {"corrupt": "skip"}, batch_size=12, workers=workers), 0)
    splits = photos.list_files(tmp_path, corrupt="skip")
    gone = root / "val" / "cat" / "002.JPEG"
    gone.unlink()
    with pytest.raises(UserError) as error:
        list(evaluation(splits, workers=workers))
    assert str(error.value) == f"{gone}: cannot be read (No such file or directory)"


def test_a_set_smaller_than_a_batch_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size: 32 is more than the 24 images of an epoch"):
        loader(folder, batch_size=32)


def test_the_files_are_those_that_would_be_decoded(folder: Path) -> None:
    for choice in ({}, {"classes": 2}, {"train_images": 7, "test_images": 4}, {"classes": 2, "train_images": 5}):
        dataset = photos.MINE.model_copy(update={"size": 32, **choice})
        splits, decoded = registry.list_files(dataset, Pipeline(size=32), folder), registry.load(dataset, folder)
        assert torch.equal(splits.train_labels, decoded.train_labels)
        assert torch.equal(splits.test_labels, decoded.test_labels)
        assert splits.class_names == decoded.class_names and splits.num_classes == decoded.num_classes
        assert (splits.mean, splits.std) == (decoded.mean, decoded.std)
        assert splits.image_shape == decoded.image_shape == (3, 32, 32)
        for files, pixels in ((splits.train, decoded.train_images), (splits.test, decoded.test_images)):
            assert len(files) == len(pixels)
            for index, image in enumerate(pixels):
                assert np.array_equal(decoding.decode_square(files.path(index).read_bytes(), 32), image.numpy())


def test_what_is_wrong_with_the_folder_is_named(folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(size=32)
    with pytest.raises(UserError, match="classes must be a whole number from 2 to 3 for folder, not 4"):
        registry.list_files(photos.MINE.model_copy(update={"classes": 4}), pipeline, folder)
    with pytest.raises(UserError, match="train_images: 25 is more than folder has, 24"):
        registry.list_files(photos.MINE.model_copy(update={"train_images": 25}), pipeline, folder)
    with pytest.raises(UserError, match="there is no such folder"):
        registry.list_files(photos.MINE, pipeline, tmp_path)
    root = photos.tree(tmp_path / "mine", train=3, test=1)
    (root / "val" / "cat" / "000.JPEG").unlink()
    with pytest.raises(UserError, match=r"cat: has no images \(.bmp"):
        registry.list_files(photos.MINE, pipeline, tmp_path)
    (root / "val" / "cat").rmdir()
    with pytest.raises(UserError, match="has no class 'cat'"):
        registry.list_files(photos.MINE, pipeline, tmp_path)
    with pytest.raises(UserError, match="imagenet is not there"):
        registry.list_files(Dataset(name="imagenet"), pipeline, tmp_path)


def test_names_of_any_kind_are_found_again(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    names = [["short.png", "völlig anders.jpeg"], [os_name := b"\xff\xfe.jpg".decode("utf-8", "surrogateescape")]]
    files = file_dataset.Files.from_folders(folders, names)
    assert [files.path(index) for index in range(3)] == [
        folders[0] / "short.png",
        folders[0] / "völlig anders.jpeg",
        folders[1] / os_name,
    ]
    assert files.labels.tolist() == [0, 0, 1]
    assert list(files.same_class(0)) == [1] and list(files.same_class(1)) == [0] and list(files.same_class(2)) == []
