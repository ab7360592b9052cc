"""The built-in data sets, one file each. Files with a leading underscore are helpers that several sets share.

The file of a set holds its ``SPEC`` (that of a family of sets: ``SPECS``) and these functions. ``dataset`` is checked
and resolved; ``data_dir`` is the folder of data sets. Bad files raise a UserError, a failed download a RunFailed.

* ``find(spec, dataset, data_dir)`` returns the files without reading them; ``str()`` of the result describes them.
* ``load(spec, dataset, files) -> ArrayDataset`` loads both splits from the files that ``find`` returned.
* ``list_files(spec, files, pipeline) -> FileDataset`` lists the images, if ``spec.streams``.
* ``download(spec, data_dir)`` gets the files from their authors unless they are there, if ``spec.downloadable``.

Every command imports all of these files. Therefore they import torch, NumPy, PIL and pyarrow inside functions only.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.dataset_spec import DatasetSpec


@functools.cache
def built_in() -> dict[str, tuple[DatasetSpec, ModuleType]]:
    """Returns the description and the module of every built-in data set, by name."""
    sources = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{info.name}")
            missing = [name for name in ("find", "load") if not hasattr(module, name)]
            missing += [] if hasattr(module, "SPEC") or hasattr(module, "SPECS") else ["SPEC"]
            if missing:  # of a file that somebody is writing
                raise UserError(f"{module.__file__}: has no {missing[0]}; {__file__} says what the file of a set holds")
            for spec in getattr(module, "SPECS", None) or (module.SPEC,):
                sources[spec.name] = spec, module
    return sources
