"""Opens the data sets of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data import registry as datasets

if TYPE_CHECKING:
    from kd_bench.training.loaders import Images


class DatasetReader:
    """Opens the data sets of trials and teachers, and keeps the last one.

    Args:
        data: Folder of data sets; None for the default.
    """

    def __init__(self, data: Path | None) -> None:
        self._data = data
        self._last: tuple[tuple[Dataset, Pipeline | None], Images] | None = None

    def open(self, trained: Trial | PretrainedTeacher) -> Images:
        """Returns the images of a trial or teacher.

        Raises:
            UserError: If they cannot be found.
        """
        key = (trained.dataset, trained.pipeline)
        if self._last is None or self._last[0] != key:
            self._last = key, datasets.open_dataset(*key, datasets.resolve_data_dir(self._data))
        return self._last[1]
