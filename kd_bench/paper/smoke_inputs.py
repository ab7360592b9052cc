"""Images and weights for smoke runs, where real ones are missing."""

from __future__ import annotations

import itertools
from pathlib import Path

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import registry as datasets
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic

#: Classes of the generated images, and images per class of each split.
CLASSES, IMAGES = 4, {"train": 2, "val": 1}


def image_folder(data: Path, generated: Path) -> tuple[tuple[str, ...], str]:
    """Returns the settings that choose ImageNet, else a folder of images, else generated ones, and a description."""
    folders = [data, *(sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else ())]
    for dataset in (Dataset(name="imagenet"), *(Dataset(name="folder", path=str(path.resolve())) for path in folders)):
        try:
            datasets.open_dataset(dataset, Pipeline(), data)  # another kind of data set may have the same folders
            path = (f"dataset.path={dataset.path}",) if dataset.path else ()
            return (f"dataset={dataset.name}", *path), datasets.locate(dataset, data)
        except UserError:
            continue
    for split, images in IMAGES.items():
        for label, number in itertools.product(range(CLASSES), range(images)):
            file = generated / split / f"class{label}" / f"{number}.jpg"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, _jpeg(seeding.derive(label, f"smoke/{split}", 0, number)))
    settings = "dataset=folder", f"dataset.path={generated.resolve()}"
    return settings, f"generated images, since there is no folder of images in {data}"


def _jpeg(seed: int) -> bytes:
    """Returns a JPEG of soft random colours, 320 by 256 pixels."""
    import io

    import numpy as np
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(colours).resize((320, 256), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def random_weights(name: str, classes: int, size: int, out: Path) -> Path:
    """Returns a file of the network's initial weights, in bfloat16, which is written if it is missing.

    Args:
        name: The network.
        classes: Number of classes.
        size: Height and width of its images in pixels, on which the shapes of a transformer's weights depend.
        out: Folder whose folder ``weights`` has the file.
    """
    file = out / "weights" / f"{name}-{classes}-{size}.safetensors"
    if file.is_file():
        return file
    from kd_bench.models import registry, weights

    seeding.seed_global(0, f"{seeding.WEIGHTS}/{name}")
    state = registry.create(name, classes, size).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    weights.write(file, halves, {"model": name})
    return file
