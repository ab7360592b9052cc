"""The columns of accuracy on corrupted images: the mean over all corruptions, and one for each corruption."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping

from kd_bench.config.corruptions import CORRUPTIONS
from kd_bench.trials.evaluation_file import Evaluation

#: The column of the mean, and those of the corruptions by name.
MEAN = "corrupted"
COLUMN_OF = {name: f"corrupted_{name}" for name in CORRUPTIONS}

#: Value and protocol for each origin of corrupted images.
Read = Callable[[Evaluation], Iterator[tuple[float, str]]]


def _reader(corruption: str | None) -> Read:
    """Returns what reads the mean over the severities of a corruption; of all corruptions for None."""

    def read(evaluation: Evaluation) -> Iterator[tuple[float, str]]:
        for item in evaluation.corruptions:
            if item.mean is not None:
                value = item.mean if corruption is None else statistics.fmean(item.accuracy[corruption])
                yield value, f"{evaluation.describe_images(item.images)}, {item.protocol}"

    return read


#: What reads a column, its title, and what it is, by the column's name.
READERS: Mapping[str, tuple[Read, tuple[str, ...], str]] = {
    MEAN: (
        _reader(None),
        ("corrupted",),
        "is the mean accuracy on test images with 15 corruptions at 5 severities each",
    ),
    **{
        COLUMN_OF[name]: (
            _reader(name),
            ("corrupted:", name.replace("_", " ")),
            "is the mean accuracy on test images with it at 5 severities",
        )
        for name in CORRUPTIONS
    },
}
