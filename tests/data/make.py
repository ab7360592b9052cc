"""Writes small data sets in the usual layouts."""

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

FINE = tuple(f"fine{number:02}" for number in range(100))
COARSE = tuple(f"coarse{number:02}" for number in range(20))


def pixels(count: int, seed: int) -> np.ndarray:
    """(N, 32, 32, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def labels(count: int, seed: int) -> np.ndarray:
    """(N, 2): fine and coarse."""
    fine = np.random.default_rng(seed).integers(0, 100, count)
    return np.stack([fine, fine // 5], 1)


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def encode_all(images: np.ndarray, form: str = "PNG") -> list[bytes | None]:
    return [encode(Image.fromarray(image), form) for image in images]


def parquet(
    file: Path,
    encoded: list[bytes | None],
    targets: np.ndarray,
    *,
    column: str = "img",
    fine: tuple[str, ...] | None = FINE,
    drop: str = "",
) -> Path:
    """One file as the public hub has it."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(encoded)]
    columns: dict[str, Any] = {
        column: pa.array(rows, struct),
        "fine_label": pa.array(targets[:, 0], pa.int64()),
        "coarse_label": pa.array(targets[:, 1], pa.int64()),
    }
    columns.pop(drop, None)
    table = pa.table(columns)
    if fine is not None:
        features = {"fine_label": {"names": fine}, "coarse_label": {"names": COARSE}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=4)
    return file


FILES = {"train-00000-of-00002": 6, "train-00001-of-00002": 6, "test-00000-of-00001": 5}


def parquet_set(folder: Path, form: str = "PNG", column: str = "img") -> None:
    """Two files of 6 training images (seeds 0 and 1) and one of 5 test images (seed 2)."""
    for seed, (name, count) in enumerate(FILES.items()):
        encoded = encode_all(pixels(count, seed), form)
        parquet(folder / f"{name}.parquet", encoded, labels(count, seed), column=column)


def pickle_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 training (seed 0) and 5 test images (seed 2) in the authors' layout; torchvision gets their md5."""
    from torchvision.datasets import CIFAR100

    content: dict[str, dict[str, Any]] = {"meta": {"fine_label_names": FINE, "coarse_label_names": COARSE}}
    for name, count, seed in (("train", 12, 0), ("test", 5, 2)):
        fine, coarse = labels(count, seed).T.tolist()
        content[name] = {"data": flat(count, seed), "fine_labels": fine, "coarse_labels": coarse}
    md5 = _pickle(folder, content)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})


TEN = tuple(f"ten{number}" for number in range(10))


def pickle_set_of_ten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's: five batches of 3 training images (seeds 1 to 5) and 5 test images (seed 6), with label = place."""
    from torchvision.datasets import CIFAR10

    train, test = [f"data_batch_{number}" for number in range(1, 6)], "test_batch"
    content: dict[str, dict[str, Any]] = {"batches.meta": {"label_names": TEN}}
    for seed, name in enumerate([*train, test], 1):
        count = 5 if name == test else 3
        content[name] = {"data": flat(count, seed), "labels": list(range(count))}
    md5 = _pickle(folder, content)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in train])
    monkeypatch.setattr(CIFAR10, "test_list", [[test, md5[test]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})


def flat(count: int, seed: int) -> np.ndarray:
    """(N, 3072): as CIFAR's authors keep images."""
    return pixels(count, seed).transpose(0, 3, 1, 2).reshape(count, -1)


def _pickle(folder: Path, content: dict[str, dict[str, Any]]) -> dict[str, str]:
    folder.mkdir(parents=True)
    md5 = {}
    for name, value in content.items():
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        md5[name] = hashlib.md5(data).hexdigest()
    return md5


def table(
    file: Path,
    encoded: list[bytes | None],
    targets: Sequence[int | None],
    *,
    names: Sequence[str] | None = None,
    column: str = "label",
    plain: bool = False,
) -> Path:
    """A parquet file with one kind of label, named in the metadata if ``names`` is given."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array(encoded, pa.binary()) if plain else pa.array([{"bytes": picture} for picture in encoded], struct)
    content = pa.table({"image": images, column: pa.array(targets, pa.int64())})
    if names is not None:
        features = {column: {"names": names, "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, file)
    return file


def image(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    """Random colours."""
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def save(path: Path, picture: Image.Image) -> Path:
    """In the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"format": "PNG"} if path.suffix == ".JPEG" else {}))  # lossless, whatever the suffix says
    return path


def as_array(picture: Image.Image) -> np.ndarray:
    """(3, H, W)."""
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
