import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import registry
from kd_bench.data.sources import _find_files
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import cache_folder
from tests.data import make

CLASSES = ("ant", "bee", "cat")
MINE = Dataset(name="folder", path="mine", size=16)


def tree(root: Path, test: str = "val", size: int = 20) -> Path:
    """Three training images and one test image per class, and files that are no images."""
    for split, count, first in (("train", 3, 0), (test, 1, 100)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                make.save(root / split / name / f"{number}.png", make.image(first + 3 * label + number, size, size))
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / "ant" / ".hidden.png").write_text("no image")
    (root / "train" / ".hidden").mkdir(exist_ok=True)
    (root / "train" / "labels.csv").write_text("no class")
    return root


def fails(dataset: Dataset, data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        registry.load(dataset, data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("test", ["val", "valid", "validation", "test"])
def test_reads_a_tree(tmp_path: Path, test: str) -> None:
    root = tree(tmp_path / "mine", test, size=16)
    assert registry.locate(MINE, tmp_path) == f"folders of images in {root}, tested on {test}"
    for _from in ("files", "cache"):
        splits = registry.load(MINE, tmp_path)
        assert splits.class_names == CLASSES
        assert splits.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert splits.test_labels.tolist() == [0, 1, 2]
        for number, image in enumerate(splits.train_images):
            assert np.array_equal(image.numpy(), make.as_array(make.image(number, 16, 16)))
        assert np.array_equal(splits.test_images[2].numpy(), make.as_array(make.image(106, 16, 16)))
        assert splits.mean == registry.spec("imagenet").mean
    assert registry.load(MINE.model_copy(update={"classes": 2}), tmp_path).class_names == CLASSES[:2]
    message = "classes must be a whole number from 2 to 3 for folder, not 4"
    assert fails(MINE.model_copy(update={"classes": 4}), tmp_path) == message


def test_path_may_be_absolute_and_sizes_stay_apart(tmp_path: Path) -> None:
    root = tree(tmp_path / "mine")
    sizes = {}
    for size in (16, 20, None):
        sizes[size] = registry.load(Dataset(name="folder", path=str(root), size=size), Path("elsewhere"))
    assert [splits.train_images.shape[-1] for splits in sizes.values()] == [16, 20, 224]
    assert np.array_equal(sizes[20].train_images[4].numpy(), make.as_array(make.image(4, 20, 20)))


def test_a_labelled_test_folder_goes_before_a_validation_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "mine", "val")
    make.save(root / "test" / "0.png", make.image(0))
    assert registry.locate(MINE, tmp_path).endswith("tested on val")  # what test holds has no labels
    tree(root, "test")
    assert registry.locate(MINE, tmp_path).endswith("tested on test")


def test_a_second_start_lists_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "mine")
    first = registry.load(MINE, tmp_path)
    monkeypatch.delattr(_find_files, "image_names")
    assert torch.equal(registry.load(MINE, tmp_path).train_images, first.train_images)


@pytest.mark.parametrize("change", ["added", "removed", "replaced", "unpacked anew"])
def test_a_change_is_noticed(tmp_path: Path, change: str) -> None:
    root = tree(tmp_path / "mine")
    before = registry.load(MINE, tmp_path)
    files = root / "train" / "bee"
    stat = files.stat()
    if change == "added":
        make.save(files / "9.png", make.image(50, 20, 20))
    elif change == "removed":
        (files / "2.png").unlink()
    else:
        os.replace(make.save(tmp_path / "new.png", make.image(50, 20, 20)), files / "2.png")
        if change == "unpacked anew":
            os.utime(files, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = registry.load(MINE, tmp_path)
    assert len(after.train_images) == 9 + (change == "added") - (change == "removed")
    if change not in ("added", "removed"):
        changed = (after.train_images != before.train_images).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [5]
    assert torch.equal(after.test_images, before.test_images)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    assert fails(MINE, tmp_path).startswith(f"{root}: there is no such folder")
    root.mkdir()
    assert (
        fails(MINE, tmp_path) == f"{root}: has neither a folder 'train', with a folder of images per class, nor shards"
    )
    (root / "ant").mkdir()
    assert fails(MINE, tmp_path).endswith("with a folder of images per class, nor shards; it has the folders ant")
    (root / "train").mkdir()
    assert fails(MINE, tmp_path) == f"{root / 'train'}: has no folders, one per class, with images"
    (root / "train" / "ant").mkdir()
    assert fails(MINE, tmp_path).startswith(f"{root}: has none of the folders test, val,")
    (root / "val").mkdir()
    assert fails(MINE, tmp_path).startswith(f"{root / 'val'}: has no folders, one per class, so the labels")
    (root / "val" / "ant").mkdir()
    assert fails(MINE, tmp_path).startswith(f"{root / 'train'}: has only one class, 'ant'")
    (root / "val" / "bee").mkdir()
    message = f"{root / 'train'}: has no class 'bee', which {root / 'val'} has; both must have the same classes"
    assert fails(MINE, tmp_path) == message
    for name in CLASSES:
        (root / "train" / name).mkdir(exist_ok=True)
    assert fails(MINE, tmp_path).startswith(f"{root / 'val'}: has no class 'cat', which")
    with pytest.raises(UserError, match="has no class 'cat', which"):  # as a command finds it before any training
        registry.locate(MINE, tmp_path)
    (root / "val" / "cat").mkdir()
    assert fails(MINE, tmp_path).startswith(f"{root / 'train' / 'ant'}: has no images (.bmp, .jpeg,")
    (root / "train" / "ant" / "images").mkdir()
    assert fails(MINE, tmp_path).endswith(
        "so the class is empty; it has folders (images), and images must lie directly in the class's folder"
    )


def test_images_below_the_folder_of_a_class_are_not_left_out_silently(tmp_path: Path) -> None:
    ant = tree(tmp_path / "mine") / "train" / "ant"
    (ant / "empty").mkdir()
    assert len(registry.load(MINE, tmp_path).train_images) == 9
    (ant / "more").mkdir()
    (ant / "more" / "1.png").write_bytes(next(ant.glob("*.png")).read_bytes())
    message = f"{ant / 'more'}: has images, but lies in the folder of a class, where images are not looked for; "
    assert fails(MINE, tmp_path) == f"{message}move the images to {ant}, or the folder elsewhere"


def test_a_bad_image_is_named_and_nothing_kept(tmp_path: Path) -> None:
    root = tree(tmp_path / "mine")
    bad = root / "train" / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:500])
    assert fails(MINE, tmp_path).startswith(f"{bad}: the image cannot be decoded (")
    bad.unlink()
    bad.mkdir()  # is no file
    assert len(registry.load(MINE, tmp_path).train_images) == 8
    assert not list(cache_folder().glob(".*.tmp"))


@pytest.mark.parametrize("under", ["imagenet", "imagenet/ILSVRC/Data/CLS-LOC", "ILSVRC2012"])
def test_finds_imagenet(tmp_path: Path, under: str) -> None:
    root = tree(tmp_path / under)
    (root / "test").mkdir()  # the challenge's, without labels
    splits = registry.load(Dataset(name="imagenet", size=16), tmp_path)
    assert splits.class_names == CLASSES
    assert splits.train_images.shape == (9, 3, 16, 16)
    assert registry.locate(Dataset(name="imagenet"), tmp_path).endswith("tested on val")


def test_imagenet_says_what_is_missing(tmp_path: Path) -> None:
    imagenet, root = Dataset(name="imagenet"), tmp_path / "imagenet"
    assert fails(imagenet, tmp_path).startswith(f"imagenet is not there: looked for train and val in {root}, ")
    make.save(root / "val" / "ILSVRC2012_val_00000001.JPEG", make.image(0))
    assert fails(imagenet, tmp_path).startswith(f"{root}: has no folder 'train'")
    (root / "train" / "n01440764").mkdir(parents=True)
    assert fails(imagenet, tmp_path).startswith(
        f"{root / 'val'}: its images are not sorted into folders, one per class"
    )


def test_real_images(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = real_data / "imagenette_mini.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    splits = registry.load(Dataset(name="folder", path="imagenette_mini", size=32), tmp_path)
    assert splits.train_labels.bincount().tolist() == [150] * 10
    assert splits.test_labels.bincount().tolist() == [50] * 10
    assert splits.class_names[0] == "n01440764"
    images = splits.train_images.double() / 255
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0.47, 0.46, 0.44], abs=0.03)
    grey = (splits.train_images[:, :1] == splits.train_images).flatten(1).all(1)
    assert 0 < grey.sum() < 100


def test_a_link_that_leads_nowhere_makes_no_set_smaller(tmp_path: Path) -> None:
    root = tree(tmp_path / "mine")
    image = root / "train" / "ant" / "0.png"
    target = image.rename(tmp_path / "fetched.png")
    image.symlink_to(target)
    assert len(registry.load(MINE, tmp_path).train_labels) == 9
    target.unlink()
    (root / "train" / "ant" / "new.txt").touch()  # or the images would be taken from the cache
    pipeline = Pipeline(size=32)
    advice = "is a link that leads nowhere; restore what it names, or remove it"
    assert fails(MINE, tmp_path) == f"{image}: {advice}"
    with pytest.raises(UserError, match=advice):
        registry.list_files(Dataset(name="folder", path="mine"), pipeline, tmp_path)
    image.unlink()
    for split in ("train", "val"):
        (root / split / "dog").symlink_to(tmp_path / "gone")
    assert fails(MINE, tmp_path) == f"{root / 'train' / 'dog'}: {advice}"


def test_sets_whose_times_are_coarse_are_not_mistaken_for_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in SquashFS, where one program has written both."""
    first, second = tree(tmp_path / "one" / "mine"), tree(tmp_path / "two" / "mine")
    for label, name in enumerate(CLASSES):
        make.save(second / "train" / name / "0.png", make.image(50 + label))
    stat = Path.stat

    def coarse(path: Path, **keywords: bool) -> os.stat_result:
        exact = stat(path, **keywords)
        return os.stat_result(exact, {"st_mtime_ns": 0, "st_ctime_ns": 0}) if path.is_relative_to(tmp_path) else exact

    monkeypatch.setattr(Path, "stat", coarse)
    images = [registry.load(MINE, folder.parent).train_images for folder in (first, second)]
    assert not torch.equal(images[0], images[1])


def test_the_home_folder_of_nobody(tmp_path: Path) -> None:
    for name in ("folder", "parquet"):
        message = fails(Dataset(name=name, path="~nobody-has-this-name/mine"), tmp_path)
        assert message.endswith("there is no such folder; path must be absolute or below the data folder")
