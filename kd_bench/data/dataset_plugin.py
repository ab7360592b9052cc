"""The user's own data sets: a function of a plug-in that makes the images (see ``kd_bench.utils.plugins``).

Its arguments are ``data_dir``, the folder of data sets; ``image_size``, a keyword with height and width of the images,
whose literal default is the set's own size; and ``generator``, if it draws. It returns an ``ArrayDataset``, for which
``ArrayDataset.from_arrays`` takes arrays. Every process that needs the images calls the function again, so it must
return the same images each time: the generator and the global generators of torch, NumPy and Python are seeded before
each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data.dataset_spec import DatasetSpec
from kd_bench.utils import plugins, seeding
from kd_bench.utils.errors import UserError, prefix
from kd_bench.utils.plugins import DATASET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset


def spec(name: str, known: Iterable[str], context: str = "") -> DatasetSpec:
    """Returns the description of a data set, from the source text of its plug-in; see ``plugins.find``.

    Raises:
        UserError: There is no such plug-in, or it makes no data set.
    """
    plugin = plugins.find(DATASET, name, known, context)
    source = plugin.check(context)
    size = source.keywords["image_size"].default if "image_size" in source.keywords else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(
            f"{prefix(context)}dataset {name!r}: {plugin.attribute} should take '*, image_size: int = 32', "
            f"a keyword with the height and width of its images ({plugin.path})"
        )
    return DatasetSpec(
        name=plugin.name,
        title=source.summary.rstrip(".") or plugin.attribute,
        image_size=size,
        crop=size // 8,
        source=f"{plugin.attribute} in {plugin.path}",
        options=("size",),
    )


@dataclass(frozen=True)
class _Origin:
    """The origin of the images. Whether they can be made is not known before they are made."""

    source: str
    data_dir: Path

    def __str__(self) -> str:
        return f"made by {self.source}"


def find(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> _Origin:
    """Returns the origin of the images."""
    return _Origin(spec.source, data_dir)


def load(spec: DatasetSpec, dataset: Dataset, origin: _Origin) -> ArrayDataset:
    """Makes the images.

    Raises:
        UserError: The file was changed since the trial was planned, the function fails, or it returns something else.
    """
    from kd_bench.data.array_dataset import ArrayDataset

    plugin = plugins.find(DATASET, dataset.name)
    plugin.refuse_changes(dataset.source)
    seeding.seed_everything(0, seeding.SPLIT)
    size = dataset.size or spec.image_size
    images = plugin.call(data_dir=origin.data_dir, image_size=size, generator=seeding.generator(0, seeding.SPLIT))
    try:
        if not isinstance(images, ArrayDataset):
            raise ValueError(f"should return kd_bench.data.array_dataset.ArrayDataset, not {type(images).__name__}")
        images.check()
        if images.image_shape[-1] != size:
            raise ValueError(f"should make images of {size} pixels, not {images.image_shape[-1]}")
    except ValueError as error:
        raise UserError(f"dataset {plugin.name!r}: {plugin.attribute}: {error} ({plugin.path})") from None
    return images
