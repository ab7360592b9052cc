"""Data sets of the user's own: a function of a plug-in that makes the images (see ``kd_bench.utils.plugins``).

It takes ``data_dir``, the folder of data sets; ``image_size``, height and width of the images, by keyword and with the
set's own as its literal default; and, if it draws, ``generator``. It returns ``ArrayDataset``, for which
``ArrayDataset.from_arrays`` takes arrays. Every process that needs the images calls the function again, so it must
return the same images each time: the generator and the global generators of torch, NumPy and Python are seeded before
each call.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.data import dataset_spec
from kd_bench.utils import plugins, seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.plugins import DATASET, Plugin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kd_bench.config.data import Dataset
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.dataset_spec import DatasetSpec


def spec(name: str, known: Iterable[str], context: str = "") -> DatasetSpec:
    """What the source of a plug-in says of the data set.

    Args:
        name: The plug-in.
        known: Names of other data sets, for the error.
        context: Where the name was written, for the error.

    Raises:
        UserError: There is no such plug-in, or it is none of a data set.
    """
    plugin = plugins.find(DATASET, name, known, context)
    source = plugin.source(context)
    size = source.keywords["image_size"].default if "image_size" in source.keywords else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        at = f"{context}: " if context else ""
        raise UserError(
            f"{at}dataset {name!r}: {plugin.attribute} should take '*, image_size: int = 32', "
            f"a keyword with the height and width of its images ({plugin.path})"
        )
    title = source.summary.rstrip(".") or plugin.attribute
    return dataset_spec.own(plugin.name, title, size, f"{plugin.attribute} in {plugin.path}")


def locate(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> str:
    """Where the images come from; whether they can be made, only making them tells."""
    return f"made by {spec.source}"


def load(spec: DatasetSpec, dataset: Dataset, data_dir: Path) -> ArrayDataset:
    """Makes the images.

    Raises:
        UserError: The file was changed since the trial was planned, fails, or gives something else.
    """
    from kd_bench.data.array_dataset import ArrayDataset

    plugin = plugin_of(dataset)
    plugin.refuse_changes(dataset.source)
    seeding.seed_everything(0, seeding.SPLIT)
    size = dataset.size or spec.image_size
    made = plugin.call(data_dir=data_dir, image_size=size, generator=seeding.generator(0, seeding.SPLIT))
    try:
        if not isinstance(made, ArrayDataset):
            raise ValueError(f"should return kd_bench.data.array_dataset.ArrayDataset, not {type(made).__name__}")
        made.check()
        if made.image_shape[-1] != size:
            raise ValueError(f"should make images of {size} pixels, not {made.image_shape[-1]}")
    except ValueError as error:
        raise UserError(f"dataset {plugin.name!r}: {plugin.attribute}: {error} ({plugin.path})") from None
    return made


def plugin_of(dataset: Dataset) -> Plugin:
    """The plug-in of a data set that has been checked."""
    return plugins.find(DATASET, dataset.name)
