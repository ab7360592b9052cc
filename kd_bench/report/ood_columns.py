"""The columns of how far a network tells its test images from images of other sets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from kd_bench.trials.evaluation_file import Evaluation, OutOfDistribution
from kd_bench.utils.text import count

#: Value and protocol of each list of other sets.
Read = Callable[[Evaluation], Iterator[tuple[float, str]]]


def _reader(name: str) -> Read:
    """Returns what reads the mean over all sets and, if these are several, the value of each set.

    The protocol names the sets, so that only values of the same sets are averaged.
    """

    def read(evaluation: Evaluation) -> Iterator[tuple[float, str]]:
        items = sorted(evaluation.ood, key=lambda item: (item.folder is not None, item.name))
        lists: list[Sequence[OutOfDistribution]] = [items] if items else []
        lists += [[item] for item in items] if len(items) > 1 else []
        for chosen in lists:
            test_images = evaluation.describe_images(chosen[0].test_images)
            sets = " and ".join(
                f"{item.name} ({count(item.images, 'image')}, digest {item.digest[:16]})" for item in chosen
            )
            yield statistics.fmean(getattr(item, name) for item in chosen), f"{test_images}, against {sets}"

    return read


#: What reads a column, its title, which values are better, and what it is, by the column's name.
READERS: Mapping[str, tuple[Read, tuple[str, ...], Literal["higher", "lower"], str]] = {
    "auroc": (
        _reader("auroc"), ("AUROC,", "softmax"), "higher",
        "is the area under the ROC curve of the largest probability, test images against other sets (mean over these)",
    ),
    "fpr95": (
        _reader("fpr95"), ("FPR95,", "softmax"), "lower",
        "is the false positive rate of the largest probability at 95 % true positives, which are test images",
    ),
    "auroc_energy": (
        _reader("auroc_energy"), ("AUROC,", "energy score"), "higher",
        "is the area under the ROC curve of log(sum(exp(logits))), test images against other sets (mean over these)",
    ),
    "fpr95_energy": (
        _reader("fpr95_energy"), ("FPR95,", "energy score"), "lower",
        "is the false positive rate of log(sum(exp(logits))) at 95 % true positives, which are test images",
    ),
}  # fmt: skip
