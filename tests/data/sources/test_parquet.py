from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.utils.errors import UserError
from tests.data import make

MINE = Dataset(name="parquet", path="mine", size=16)
NAMES = ("ant", "bee", "cat")
#: Of several sizes; the third is grey.
PICTURES = [make.image(0, 16, 16), make.image(1, 20, 31), make.image(2, 16, 16).convert("L"), make.image(3, 40, 18)]
ENCODED: list[bytes | None] = [make.encode(picture) for picture in PICTURES]


def fails(dataset: Dataset, data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        registry.load(dataset, data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(
    folder: Path, *, test: str = "test", labels: tuple[int | None, ...] = (0, 1, 2, 0), **options: object
) -> Path:
    make.table(folder / "train-00000-of-00001.parquet", ENCODED, labels, **options)  # type: ignore[arg-type]
    return make.table(folder / f"{test}.parquet", ENCODED[:2], labels[:2], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["label", "labels", "fine_label"])
@pytest.mark.parametrize("plain", [False, True], ids=["struct", "binary"])
@pytest.mark.parametrize("test", ["test", "val", "validation-00000-of-00001"])
def test_reads_images_of_any_size(tmp_path: Path, column: str, plain: bool, test: str) -> None:
    write(tmp_path / "mine" / "data", test=test, names=NAMES, column=column, plain=plain)
    assert registry.locate(MINE, tmp_path) == f"parquet in {tmp_path / 'mine' / 'data'}, tested on {test}.parquet"
    splits = registry.load(MINE, tmp_path)
    assert splits.class_names == NAMES
    assert splits.train_labels.tolist() == [0, 1, 2, 0]
    assert splits.test_labels.tolist() == [0, 1]
    assert splits.train_images.shape == (4, 3, 16, 16)
    for index in (0, 2):
        assert np.array_equal(splits.train_images[index].numpy(), make.as_array(PICTURES[index]))
    square = PICTURES[1].crop((5, 0, 25, 20)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(splits.train_images[1].numpy(), make.as_array(square))
    assert fails(MINE.model_copy(update={"classes": 4}), tmp_path).startswith(
        "classes must be a whole number from 2 to"
    )


def test_the_column_that_is_named_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "mine", column="kind")
    message = fails(MINE, tmp_path)
    assert message.endswith(
        "has no column 'label' or 'labels' or 'fine_label'; only image, kind: name the one with labels"
    )
    splits = registry.load(MINE.model_copy(update={"labels": "kind"}), tmp_path)
    assert splits.train_labels.tolist() == [0, 1, 2, 0]
    assert splits.class_names == ("0", "1", "2")
    message = fails(MINE.model_copy(update={"labels": "knid"}), tmp_path)
    assert message.endswith("has no column 'knid'; did you mean 'kind'?")


def test_columns_stay_apart_in_the_cache(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make.parquet(tmp_path / "mine" / f"{split}.parquet", make.encode_all(make.pixels(4, 0)), make.labels(4, 0))
    fine = registry.load(MINE, tmp_path)
    coarse = registry.load(MINE.model_copy(update={"labels": "coarse_label"}), tmp_path)
    assert (fine.class_names, coarse.class_names) == (make.FINE, make.COARSE)
    assert fine.train_labels.tolist() == make.labels(4, 0)[:, 0].tolist()
    assert coarse.train_labels.tolist() == make.labels(4, 0)[:, 1].tolist()


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mine", names=NAMES)
    file = make.table(tmp_path / "mine" / "test.parquet", ENCODED[:3], [0, -1, -1], names=NAMES)
    assert fails(MINE, tmp_path) == (
        f"{file}: column 'label' must be from 0 to 2, but row 1 has -1; a split without labels cannot be used: "
        "remove its files"
    )
    make.table(file, ENCODED[:3], [0, None, 1], names=NAMES)
    assert fails(MINE, tmp_path) == f"{file}: column 'label' must hold a whole number in every row"


def test_numbers_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    test = write(tmp_path / "mine", labels=(0, 1, 7, 10**12))
    train = tmp_path / "mine" / "train-00000-of-00001.parquet"
    assert fails(MINE, tmp_path).startswith(
        f"{train}: the labels must be 0, 1, 2 and so on, but no training image has 2"
    )
    write(tmp_path / "mine")
    make.table(test, ENCODED, [0, 1, 2, 3])
    assert fails(MINE, tmp_path) == f"{test}: a test image has the label 3, and no training image has"
    make.table(test, ENCODED, [0, 1, 2, 2], names=NAMES)
    assert registry.load(MINE, tmp_path).class_names == NAMES
    make.table(train, ENCODED, [0, 1, 2, 2], names=NAMES[::-1])
    assert fails(MINE, tmp_path).endswith("training and test files do not name the same classes")


def test_bad_files_and_images_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert fails(MINE, tmp_path).startswith(f"{folder}: there is no such folder")
    folder.mkdir()
    assert fails(MINE, tmp_path).startswith(f"{folder}: has no train*.parquet")
    test = write(folder)
    make.table(test, [ENCODED[0], None], [0, 1])
    assert fails(MINE, tmp_path).startswith(f"{test}: the image in row 1 cannot be decoded (it is no JPEG,")
    test.write_bytes(b"PAR1")
    assert fails(MINE, tmp_path).startswith(f"{test}: not a whole parquet file")
    test.unlink()
    assert fails(MINE, tmp_path).startswith(f"{folder}: has no test-*.parquet")


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    test = write(tmp_path / "mine")
    for part in range(64):
        make.table(tmp_path / "mine" / f"train-{part:05}-of-00064.parquet", ENCODED, [0, 1, 2, 0])
    (tmp_path / "mine" / "train-00000-of-00001.parquet").unlink()
    small = tmp_path / "small"
    for name in ("train", "test"):
        small.mkdir(exist_ok=True)
        (small / f"{name}.parquet").write_bytes(test.read_bytes())
    registry.load(Dataset(name="parquet", path=str(small), size=16))  # so that everything is imported
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 20, limits[1]))
    try:
        images = registry.load(MINE, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(images.train_labels) == 4 * 64


def test_a_split_without_images_of_the_chosen_classes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder)
    make.table(folder / "test.parquet", ENCODED[:1], [2])
    assert len(registry.load(MINE, tmp_path).test_labels) == 1
    message = "classes: parquet has no test images of its first 2 classes"
    assert fails(MINE.model_copy(update={"classes": 2}), tmp_path) == message
