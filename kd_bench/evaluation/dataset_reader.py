"""Opens the data sets of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data import corrupted, other_images
from kd_bench.data import registry as datasets
from kd_bench.trials.evaluation_file import LONGEST_NAME
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user

if TYPE_CHECKING:
    from kd_bench.training.loaders import Images


#: Why nothing is out of distribution.
NO_OTHER_SETS = (
    "out of distribution is left out, because there are no other data sets in the data folder; name a folder of images "
    "with --ood"
)


class DatasetReader:
    """Opens the data sets of trials and teachers, and keeps the last one.

    Args:
        data: Folder of data sets; None for the default.
    """

    def __init__(self, data: Path | None) -> None:
        self._data = data
        self._others: dict[str, other_images.OtherImages] = {}
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

    def corrupted(self, trained: Trial | PretrainedTeacher) -> corrupted.CorruptedImages | str:
        """Returns the corrupted test images of a trial or teacher, or why there are none, as the end of a sentence.

        Raises:
            UserError: If published ones are there, but incomplete, damaged, or of other images.
        """
        return corrupted.find(trained.dataset, self.open(trained), datasets.resolve_data_dir(self._data))

    def others(
        self, trained: Trial | PretrainedTeacher, named: Sequence[str]
    ) -> Iterator[other_images.OtherImages | str]:
        """Yields images that a network was not trained for, and why one that was named is left out, as a sentence.

        Args:
            trained: The network's trial, or the teacher.
            named: Names of data sets, and folders; none for all data sets that are there.

        Raises:
            UserError: If there is no such folder, if it has no images, or if two folders have the same name.
        """
        names = named or self.other_sets(trained)
        if not names:
            yield NO_OTHER_SETS
        self.check_names(names)
        for name in dict.fromkeys(names):
            if name == trained.dataset.name:
                yield f"{name} is left out, because it is the network's own data set"
                continue
            try:
                other = self._others.get(name) or self._open_other(name)
            except UserError as error:
                if name not in other_images.SETS:
                    raise
                yield f"{name} is left out: {error}"
                continue
            self._others[name] = other
            yield other

    def check_names(self, named: Iterable[str]) -> None:
        """Checks names of data sets and folders before anything is measured.

        Raises:
            UserError: If there is no such folder, or if results cannot be kept by its name.
        """
        kept: dict[str, str] = {}
        for name in dict.fromkeys(named):
            base = name if name in other_images.SETS else _find_folder(name).resolve().name
            other = kept.setdefault(base, name)
            if other != name:
                raise UserError(f"--ood: {other} and {name} have one name, by which results are kept; "
                                "rename one of them")  # fmt: skip

    def other_sets(self, trained: Trial | PretrainedTeacher) -> list[str]:
        """Returns the names of the data sets in the data folder that are not the network's own."""
        folder = datasets.resolve_data_dir(self._data)
        names = [name for name in other_images.SETS if name != trained.dataset.name]
        return [name for name in names if other_images.is_there(name, folder)]

    def _open_other(self, name: str) -> other_images.OtherImages:
        if name in other_images.SETS:
            return other_images.open_set(name, datasets.resolve_data_dir(self._data))
        return other_images.open_folder(_find_folder(name))


def _find_folder(name: str) -> Path:
    """Returns the folder of images that a user named.

    Raises:
        UserError: If there is none, or if it has no name that can be written into a file.
    """
    sets = ", ".join(other_images.SETS)
    if not name:
        raise UserError(f"--ood: is empty; it needs a folder of images, or one of the data sets {sets}")
    folder = expand_user(name)
    if not folder.is_dir():
        raise UserError(f"--ood: {name} is no folder, and none of the data sets {sets}")
    path = str(folder.resolve())
    base = folder.resolve().name
    if not path.isprintable() or not 0 < len(base) <= LONGEST_NAME:
        raise UserError(f"--ood: {name} needs a name of 1 to {LONGEST_NAME} printable characters, by which results "
                        "are kept; rename it")  # fmt: skip
    return folder
