"""ImageNet of the challenge of 2012: folders of images, one per class, or timm's shards on the public hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.data.sources._find_files import SplitFiles, class_folders
from kd_bench.data.sources._image_folders import SplitFolders, find_shards, list_files, load, require_class_folders
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.config.data import Dataset

__all__ = ["SPEC", "find", "list_files", "load"]

_SITE = "https://image-net.org/challenges/LSVRC/2012/"

# The number of classes is left to the files, because a folder may hold a part of the set.
SPEC = DatasetSpec(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    image_size=224,
    crop=28,
    source=f"O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; {_SITE}",
    options=("size",),
    streams=True,
    full_size=(1000, 1_281_167, 50_000),
    hub=("ILSVRC/imagenet-1k", "validation"),
)


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> SplitFiles | SplitFolders:
    """Returns the shards, else the folders of images."""
    named = data_dir / spec.name
    roots = [named, named / "ILSVRC" / "Data" / "CLS-LOC", data_dir / "ILSVRC2012"]
    if data_dir.name in ("imagenet", "ILSVRC2012", "CLS-LOC"):
        roots.append(data_dir)
    if shards := find_shards([*roots, data_dir / "imagenet-1k-wds"]):
        return shards
    for root in roots:
        train, test = root / "train", root / "val"
        if train.is_dir() or test.is_dir():
            for split in (train, test):
                if not split.is_dir():
                    raise UserError(f"{root}: has no folder {split.name!r}; unpack the images of ILSVRC 2012 there")
            require_class_folders(train)
            if not class_folders(test):
                raise UserError(
                    f"{test}: its images are not sorted into folders, one per class; let torchvision.datasets.ImageNet("
                    f"{str(root)!r}, split='val') do it, with ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
                    "in that folder"
                )
            return SplitFolders(f"folders of images in {root}, tested on val", train, test)
    raise UserError(
        f"imagenet is not there: looked for train and val in {', '.join(map(str, roots))}; get it from {_SITE}, "
        "or set --data or KD_BENCH_DATA to the folder that holds it"
    )
