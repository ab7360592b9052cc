"""Writes a folder of small photographs, in all colour modes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import registry
from kd_bench.data.file_dataset import FileDataset

CLASSES = ("ant", "bee", "cat")
MINE = Dataset(name="folder", path="mine")
#: Augmentations of the strong recipe, and more.
EVERYTHING = {
    "auto_augment": "rand-m7-mstd0.5",
    "erase": 0.6,
    "repeats": 3,
    "mixup": 0.1,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "crop_pct": 0.95,
}


def photo(seed: int) -> Image.Image:
    """Smooth colours, 40 to 89 pixels high and wide."""
    random = np.random.default_rng(seed)
    width, height = random.integers(40, 90, 2).tolist()
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def tree(root: Path, train: int = 8, test: int = 5) -> Path:
    """Writes ``train`` and ``test`` images per class; one training image each is in grey, CMYK and RGBA."""
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                photo(1000 * (split == "val") + 100 * label + number).save(folder / f"{number:03}.JPEG", quality=90)
    photo(0).convert("L").save(root / "train" / "ant" / "000.JPEG")
    photo(1).convert("CMYK").save(root / "train" / "ant" / "001.JPEG")
    see_through = photo(2).convert("RGBA")
    see_through.putalpha(100)
    see_through.save(root / "train" / "ant" / "002.png")
    (root / "train" / "ant" / "002.JPEG").unlink()
    return root


def share(mixed: Tensor, images: Tensor) -> float:
    """Returns the weight of a batch's own images after mixup, by least squares."""
    apart = images - images.flip(0)
    return float(((mixed - images.flip(0)) * apart).sum() / (apart * apart).sum())


def spoil(file: Path) -> Path:
    """Cuts a file short."""
    file.write_bytes(file.read_bytes()[:300])
    return file


def list_files(root: Path, **settings: Any) -> FileDataset:
    """Lists the set in the folder ``mine`` of ``root``."""
    return registry.list_files(MINE, Pipeline(**({"size": 32} | settings)), root)
