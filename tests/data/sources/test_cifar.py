import pickle
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

TRAIN = np.concatenate([make.pixels(6, 0), make.pixels(6, 1)]).transpose(0, 3, 1, 2)
TRAIN_LABELS = np.concatenate([make.labels(6, 0), make.labels(6, 1)])
TEST = make.pixels(5, 2).transpose(0, 3, 1, 2)


def fails(folder: Path) -> str:
    """Returns the error message, of one line."""
    with pytest.raises(UserError) as error:
        registry.load(Dataset(name="cifar100"), folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("under", ["cifar100", "cifar100/cifar100", "cifar100/data", "."])
def test_finds_parquet_in_every_layout(tmp_path: Path, under: str) -> None:
    make.parquet_set(tmp_path / "sets" / under)
    assert registry.locate(Dataset(name="cifar100"), tmp_path / "sets") == f"parquet in {tmp_path / 'sets' / under}"
    splits = registry.load(Dataset(name="cifar100"), tmp_path / "sets")
    assert np.array_equal(splits.train_images.numpy(), TRAIN)


@pytest.mark.parametrize(("form", "column"), [("PNG", "img"), ("WEBP", "img"), ("PNG", "image")])
def test_reads_parquet_to_the_pixel(tmp_path: Path, form: str, column: str) -> None:
    make.parquet_set(tmp_path / "cifar100", form, column)
    for _from in ("files", "cache"):
        splits = registry.load(Dataset(name="cifar100"), tmp_path)
        assert np.array_equal(splits.train_images.numpy(), TRAIN)
        assert np.array_equal(splits.test_images.numpy(), TEST)
        assert splits.train_labels.tolist() == TRAIN_LABELS[:, 0].tolist()
        assert splits.test_labels.tolist() == make.labels(5, 2)[:, 0].tolist()
        assert splits.class_names == make.FINE
        assert splits.train_images.dtype == torch.uint8
        assert splits.train_images.is_contiguous()
        assert splits.train_labels.dtype == torch.int64
        assert (splits.mean, splits.std) == (registry.spec("cifar100").mean, registry.spec("cifar100").std)


def test_coarse_labels_and_first_classes(tmp_path: Path) -> None:
    make.parquet_set(tmp_path)
    coarse = registry.load(Dataset(name="cifar100", labels="coarse"), tmp_path)
    assert coarse.train_labels.tolist() == TRAIN_LABELS[:, 1].tolist()
    assert coarse.class_names == make.COARSE
    few = registry.load(Dataset(name="cifar100", labels="coarse", classes=12), tmp_path)
    kept = TRAIN_LABELS[:, 1] < 12
    assert 0 < kept.sum() < 12
    assert np.array_equal(few.train_images.numpy(), TRAIN[kept])
    assert few.train_labels.tolist() == TRAIN_LABELS[kept, 1].tolist()
    assert few.num_classes == 12


def test_grey_images_and_missing_class_names(tmp_path: Path) -> None:
    grey = Image.fromarray(make.pixels(1, 0)[0]).convert("L")
    for split in ("train", "test"):
        make.parquet(tmp_path / f"{split}-0.parquet", [make.encode(grey)], make.labels(1, 0), fine=None)
    splits = registry.load(Dataset(name="cifar100"), tmp_path)
    assert np.array_equal(splits.train_images.numpy(), np.broadcast_to(np.asarray(grey), (1, 3, 32, 32)))
    assert splits.class_names[:3] == ("0", "1", "2")
    assert splits.num_classes == 100


def test_not_there_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    message = fails(tmp_path)
    for part in (tmp_path / "cifar100" / "data", tmp_path / "cifar-100-python", "hf download", "https://", "--data"):
        assert str(part) in message
    with pytest.raises(UserError, match="KD_BENCH_DATA"):
        registry.locate(Dataset(name="cifar100"), tmp_path / "nowhere")


@pytest.mark.parametrize(("split", "gone"), [("train", "train-00001-of-00002"), ("test", "test-00000-of-00001")])
def test_half_a_download_is_no_data_set(tmp_path: Path, split: str, gone: str) -> None:
    make.parquet_set(tmp_path / "cifar100")
    (tmp_path / "cifar100" / f"{gone}.parquet").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path / 'cifar100'}: .*{split}"):
        registry.locate(Dataset(name="cifar100"), tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_truncated_parquet_is_named(tmp_path: Path, keep: float) -> None:
    make.parquet_set(tmp_path)
    file = tmp_path / "train-00001-of-00002.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    assert fails(tmp_path).startswith(f"{file}: not a whole parquet file")


def test_damage_inside_a_parquet_is_named(tmp_path: Path) -> None:
    make.parquet_set(tmp_path)
    file = tmp_path / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[4:4000] = bytes(3996)
    file.write_bytes(content)
    assert fails(tmp_path).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no image", "the image in row 4 cannot be decoded"),
        (None, "the image in row 4 cannot be decoded"),
        (make.encode(Image.fromarray(make.pixels(1, 0)[0]))[:900], "the image in row 4 cannot be decoded"),
        (make.encode(Image.new("RGB", (16, 24))), "the image in row 4 is 24x16, not 32x32"),
    ],
)
def test_bad_image_is_named_with_its_row(tmp_path: Path, bad: bytes | None, message: str) -> None:
    make.parquet_set(tmp_path)
    encoded = make.encode_all(make.pixels(6, 1))
    encoded[4] = bad
    file = make.parquet(tmp_path / "train-00001-of-00002.parquet", encoded, make.labels(6, 1))
    assert fails(tmp_path).startswith(f"{file}: {message}")


def test_other_content_is_named(tmp_path: Path) -> None:
    make.parquet_set(tmp_path)
    file, good, targets = (
        tmp_path / "test-00000-of-00001.parquet",
        make.encode_all(make.pixels(5, 2)),
        make.labels(5, 2),
    )
    make.parquet(file, good, targets, drop="coarse_label")
    assert fails(tmp_path).startswith(f"{file}: has no column 'coarse_label', only img, fine_label")
    make.parquet(file, good, targets, column="picture")
    assert fails(tmp_path).startswith(f"{file}: has no column 'img' or 'image', only picture")
    make.parquet(file, good, np.add(targets, [100, 0]))
    assert fails(tmp_path).startswith(f"{file}: column 'fine_label' must be from 0 to 99")
    make.parquet(file, good, targets, fine=make.FINE[:10])
    assert fails(tmp_path).startswith(f"{file}: column 'fine_label' has 10 classes, not 100")
    make.parquet(file, good, targets, fine=make.FINE[::-1])
    assert fails(tmp_path).startswith(f"{tmp_path}: training and test files do not name the same classes")
    make.parquet(file, [], targets[:0])
    assert fails(tmp_path).startswith(f"{file}: has no rows")


@pytest.mark.parametrize("under", ["cifar100/cifar-100-python", "cifar-100-python"])
def test_reads_torchvisions_files(tmp_path: Path, under: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / under
    make.pickle_set(folder, monkeypatch)
    for data_dir in (tmp_path, *([folder] if "/" not in under else [])):
        assert registry.locate(Dataset(name="cifar100"), data_dir) == f"torchvision files in {folder}"
        for kind, names in enumerate((make.FINE, make.COARSE)):
            splits = registry.load(Dataset(name="cifar100", labels=("fine", "coarse")[kind]), data_dir)
            assert np.array_equal(splits.train_images.numpy(), make.pixels(12, 0).transpose(0, 3, 1, 2))
            assert np.array_equal(splits.test_images.numpy(), TEST)
            assert splits.train_images.is_contiguous()
            assert splits.train_labels.tolist() == make.labels(12, 0)[:, kind].tolist()
            assert splits.test_labels.tolist() == make.labels(5, 2)[:, kind].tolist()
            assert splits.class_names == names


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_damaged_torchvision_file_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    make.pickle_set(folder, monkeypatch)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert fails(tmp_path).startswith(f"{folder / name}: its checksum is not the published one")
    (folder / name).unlink()
    assert fails(tmp_path).startswith(f"{folder}: has no file {name!r}")


def test_a_malicious_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    make.pickle_set(folder, monkeypatch)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    (folder / "train").write_bytes(pickle.dumps(Evil()))
    fails(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_replaced_source_is_read_again(tmp_path: Path) -> None:
    make.parquet_set(tmp_path / "cifar100")
    before = registry.load(Dataset(name="cifar100"), tmp_path).test_images.clone()
    file = tmp_path / "cifar100" / "test-00000-of-00001.parquet"
    make.parquet(file, make.encode_all(make.pixels(5, 9)), make.labels(5, 2))
    after = registry.load(Dataset(name="cifar100"), tmp_path).test_images
    assert not torch.equal(before, after)
    assert np.array_equal(after.numpy(), make.pixels(5, 9).transpose(0, 3, 1, 2))


def test_a_moved_set_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_bench.data.sources import _parquet_reader

    make.parquet_set(tmp_path / "a")
    registry.load(Dataset(name="cifar100"), tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    monkeypatch.delattr(_parquet_reader, "read")
    assert np.array_equal(registry.load(Dataset(name="cifar100"), tmp_path / "b").train_images.numpy(), TRAIN)


@pytest.mark.parametrize("under", ["cifar10", "cifar10/plain_text", "."])
def test_reads_cifar10_from_parquet(tmp_path: Path, under: str) -> None:
    folder = tmp_path / "sets" / under
    for name, seed in (("train-00000-of-00001", 0), ("test-00000-of-00001", 1)):
        make.table(folder / f"{name}.parquet", make.encode_all(make.pixels(4, seed)), [9, 0, 3, 3], names=make.TEN)
    assert registry.locate(Dataset(name="cifar10"), tmp_path / "sets") == f"parquet in {folder}"
    splits = registry.load(Dataset(name="cifar10"), tmp_path / "sets")
    for images, labels, seed in (
        (splits.train_images, splits.train_labels, 0),
        (splits.test_images, splits.test_labels, 1),
    ):
        assert np.array_equal(images.numpy(), make.pixels(4, seed).transpose(0, 3, 1, 2))
        assert labels.tolist() == [9, 0, 3, 3]
    assert splits.class_names == make.TEN
    assert splits.std == registry.spec("cifar10").std


def test_reads_torchvisions_files_of_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    make.pickle_set_of_ten(folder, monkeypatch)
    assert registry.locate(Dataset(name="cifar10"), tmp_path) == f"torchvision files in {folder}"
    splits = registry.load(Dataset(name="cifar10"), tmp_path)
    train = np.concatenate([make.flat(3, seed) for seed in range(1, 6)])
    assert np.array_equal(splits.train_images.flatten(1).numpy(), train)
    assert np.array_equal(splits.test_images.flatten(1).numpy(), make.flat(5, 6))
    assert splits.train_labels.tolist() == [0, 1, 2] * 5
    assert splits.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert splits.class_names == make.TEN
    assert splits.train_images.is_contiguous()
    few = registry.load(Dataset(name="cifar10", classes=2), tmp_path)
    assert few.train_labels.tolist() == [0, 1] * 5
    (folder / "data_batch_4").write_bytes((folder / "data_batch_5").read_bytes())
    message = (
        f"^{folder / 'data_batch_4'}: its checksum is not the published one; unpack .*cifar-10-python.tar.gz again"
    )
    with pytest.raises(UserError, match=message):
        registry.load(Dataset(name="cifar10"), tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match=f"^{folder}: has no file 'data_batch_4'"):
        registry.locate(Dataset(name="cifar10"), tmp_path)


def test_the_folder_of_one_set_is_not_taken_for_another(tmp_path: Path) -> None:
    make.parquet_set(tmp_path / "cifar100")
    assert registry.locate(Dataset(name="cifar100"), tmp_path / "cifar100")
    with pytest.raises(UserError, match=r"^cifar10 is not there: .*hf download uoft-cs/cifar10"):
        registry.locate(Dataset(name="cifar10"), tmp_path / "cifar100")


def test_real_cifar100(real_data: Path) -> None:
    spec = registry.spec("cifar100")
    splits = registry.load(Dataset(name="cifar100"), real_data)
    assert splits.train_images.shape == (spec.train_size, 3, 32, 32)
    assert splits.test_images.shape == (spec.test_size, 3, 32, 32)
    assert splits.train_labels.bincount().tolist() == [500] * 100
    assert splits.test_labels.bincount().tolist() == [100] * 100
    assert splits.class_names[:2] == ("apple", "aquarium_fish")
    scaled = [splits.train_images[:, channel].double() / 255 for channel in range(3)]
    assert [float(channel.mean()) for channel in scaled] == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)
    assert [float(channel.std()) for channel in scaled] == pytest.approx([0.2673, 0.2564, 0.2762], abs=1e-4)
    coarse = registry.load(Dataset(name="cifar100", labels="coarse", classes=5), real_data)
    assert coarse.train_labels.bincount().tolist() == [2500] * 5
    assert coarse.class_names[:2] == ("aquatic_mammals", "fish")
