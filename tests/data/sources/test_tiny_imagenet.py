import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.utils.errors import UserError
from tests.data import make

CLASSES = ("n01443537", "n01629819", "n02124075")
TINY = Dataset(name="tiny_imagenet")


def tree(root: Path) -> Path:
    """The authors' layout: two training images per class (seeds 0 to 5), and four test images (seeds 10 to 13)."""
    for label, name in enumerate(CLASSES):
        for number in range(2):
            make.save(root / "train" / name / "images" / f"{name}_{number}.JPEG", make.image(2 * label + number))
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for number, label in enumerate((2, 0, 1, 0)):
        make.save(root / "val" / "images" / f"val_{number}.JPEG", make.image(10 + number))
        lines.append(f"val_{number}.JPEG\t{CLASSES[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    make.save(root / "test" / "images" / "test_0.JPEG", make.image(99))
    (root / "wnids.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    (root / "words.txt").write_text(f"{CLASSES[0]}\tgoldfish, Carassius auratus\n")
    return root


def sort_val(root: Path) -> None:
    """Sorts the validation images into folders, as common scripts do."""
    for number, label in enumerate((2, 0, 1, 0)):
        folder = root / "val" / CLASSES[label] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val" / "images" / f"val_{number}.JPEG", folder)


def fails(data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        registry.load(TINY, data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("val", ["annotated", "sorted"])
@pytest.mark.parametrize("under", ["tiny-imagenet-200", "tiny_imagenet/tiny-imagenet-200"])
def test_reads_the_authors_folders(tmp_path: Path, under: str, val: str) -> None:
    root = tree(tmp_path / under)
    if val == "sorted":
        sort_val(root)
    assert registry.locate(TINY, tmp_path) == f"folders of images in {root}"
    assert registry.locate(TINY, root) == f"folders of images in {root}"
    splits = registry.load(TINY, tmp_path)
    assert splits.class_names == CLASSES
    assert splits.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.test_labels.tolist() == [0, 0, 1, 2]
    for seed, image in enumerate(splits.train_images):
        assert np.array_equal(image.numpy(), make.as_array(make.image(seed)))
    for seed, image in zip((11, 13, 12, 10), splits.test_images, strict=True):
        assert np.array_equal(image.numpy(), make.as_array(make.image(seed)))
    assert (splits.mean, splits.std) == (registry.spec("tiny_imagenet").mean, registry.spec("tiny_imagenet").std)


@pytest.mark.parametrize("under", ["tiny_imagenet", "tiny_imagenet/data", "tiny-imagenet", "."])
def test_reads_the_hubs_files_the_same(tmp_path: Path, under: str) -> None:
    tree(tmp_path / "folders" / "tiny-imagenet-200")
    data = tmp_path / "parquet" / under
    train = make.encode_all(np.stack([np.asarray(make.image(seed)) for seed in range(6)]))
    valid = make.encode_all(np.stack([np.asarray(make.image(seed)) for seed in (11, 13, 12, 10)]))
    make.table(data / "train-00000-of-00001-1359597a978bc4fa.parquet", train, [0, 0, 1, 1, 2, 2], names=CLASSES)
    make.table(data / "valid-00000-of-00001-70d52db3c749a935.parquet", valid, [0, 0, 1, 2], names=CLASSES)
    assert registry.locate(TINY, tmp_path / "parquet") == f"parquet in {data}"
    for size in (32, 64):
        dataset = Dataset(name="tiny_imagenet", size=size)
        splits = registry.load(dataset, tmp_path / "folders")
        other = registry.load(dataset, tmp_path / "parquet")
        assert splits.class_names == other.class_names
        for part in ("train_images", "train_labels", "test_images", "test_labels"):
            assert torch.equal(getattr(splits, part), getattr(other, part))
        small = make.image(1).resize((size, size), Image.Resampling.BICUBIC)
        assert np.array_equal(splits.train_images[1].numpy(), make.as_array(small))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    message = fails(tmp_path)
    for part in (tmp_path / "tiny_imagenet" / "data", "hf download zh-plus/tiny-imagenet", "tiny-imagenet-200.zip"):
        assert str(part) in message
    root = tree(tmp_path / "tiny-imagenet-200")
    file = root / "val" / "val_annotations.txt"
    lines = file.read_text()
    file.write_text(lines.replace(CLASSES[1], "n99"))
    assert fails(tmp_path).startswith(f"{file}: line 3 is not an image's name, a tab and one of the classes")
    file.write_text(lines + f"val_9.JPEG\t{CLASSES[0]}\t0\t0\t1\t1\n")
    assert fails(tmp_path).startswith(f"{root / 'val' / 'images' / 'val_9.JPEG'}: is missing, but in val_annotations")
    file.write_text("".join(lines.splitlines(keepends=True)[1:]))
    assert fails(tmp_path).startswith(f"{root / 'val' / 'images' / 'val_0.JPEG'}: is there, but not in val_anno")
    file.unlink()
    assert fails(tmp_path).startswith(f"{file}: is missing")
    shutil.rmtree(root / "train" / CLASSES[2])
    assert fails(tmp_path).startswith(f"{root / 'train'}: has no class 'n02124075', which {root / 'wnids.txt'} has")
    shutil.rmtree(root / "val")
    assert fails(tmp_path).startswith(f"{root}: has no folder 'val'")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "tiny-imagenet-200")
    path = make.save(root / "train" / CLASSES[0] / "images" / "a.JPEG", make.image(0, 64, 32))
    assert fails(tmp_path) == f"{path}: the image is 64x32, not 64x64"
