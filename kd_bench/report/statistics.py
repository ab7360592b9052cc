"""Means, standard deviations and paired differences over seeds.

Sums are exact, because ``statistics`` of the standard library works with rational numbers. Equal trials therefore have
a standard deviation of exactly zero. Every table needs Student's quantile, so it comes from ``scipy.special``:
``scipy.stats`` takes a second to import.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kd_bench.utils.text import count

if TYPE_CHECKING:
    import pandas as pd

    from kd_bench.report.crossed import Crossing


@dataclass(frozen=True)
class MeanAndStd:
    """Mean and standard deviation of one quantity over trials, in the quantity's unit.

    Attributes:
        mean: Mean over the trials.
        std: Sample standard deviation; None for a single trial. With a ``crossing``, that of a single trial with
            another teacher and another seed.
        n: Number of trials.
        crossing: The analysis of variance of trials of several teachers; None for trials of one.
    """

    mean: float
    std: float | None
    n: int
    crossing: Crossing | None = None

    def __str__(self) -> str:
        """Mean and standard deviation, as in ``76.64 ± 0.02``."""
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """Mean difference of a method to the baseline, paired by seed, in the quantity's unit.

    Attributes:
        mean: Mean of the differences.
        low, high: Ends of the confidence interval; None for a single seed.
        n: Number of seeds that both have; with a ``crossing``, of pairs of a teacher's seed and a student's.
        crossing: The analysis of variance of the differences of several teachers; None for one teacher.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    crossing: Crossing | None = None

    @property
    def over(self) -> str:
        """What it is the mean over, in words."""
        return self.crossing.text if self.crossing else count(self.n, "seed")

    @property
    def test(self) -> Literal["quasi-F", "paired t"]:
        """The statistic of its interval: with a single teacher or a single seed, quasi-F is the paired t statistic."""
        return "quasi-F" if self.crossing and self.crossing.is_split else "paired t"


def estimate(values: Sequence[float]) -> MeanAndStd | None:
    """Returns mean and sample standard deviation (ddof = 1) of finite values, one a trial; None if there are none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanAndStd(float(statistics.mean(values)), std, len(values))


def mean_interval(value: MeanAndStd, confidence: float = 0.95) -> tuple[float, float] | None:
    """Returns Student's interval of a mean: mean -+ t(n - 1, (1 + confidence) / 2) * std / sqrt(n).

    Trials of several teachers have that of ``Crossing.interval``.

    Args:
        value: Mean, standard deviation and number of the trials.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The ends of the interval; None for a single trial.
    """
    if value.crossing is not None:
        return value.crossing.interval(confidence)
    if value.std is None:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(value.n - 1, (1 + confidence) / 2)) * value.std / value.n**0.5
    return value.mean - half, value.mean + half


def prediction_interval(value: MeanAndStd, confidence: float = 0.95) -> tuple[float, float] | None:
    """Returns Student's interval of one further trial: mean -+ t(n - 1, (1 + confidence) / 2) * std * sqrt(1 + 1 / n).

    Arguments and result are those of ``mean_interval``.
    """
    interval = mean_interval(value, confidence)
    if interval is None:
        return None
    half = (interval[1] - interval[0]) / 2 * (value.n + 1) ** 0.5
    return value.mean - half, value.mean + half


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Returns the mean difference to a baseline over the seeds that both have, with Student's interval.

    Pairing removes the effects of the seed that both share: batches, augmentation, often the initial weights. If all
    differences are equal, the interval has zero width. Differences count as equal if they are so up to the rounding of
    the subtraction (4 units in the last place of the largest operand).

    Args:
        values: Finite value of each seed.
        baseline: The same for the baseline.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        None if the two have no seed in common.
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    value = estimate(differences)
    if value is None:
        return None
    rounding = 4 * sys.float_info.epsilon * max(max(abs(values[seed]), abs(baseline[seed])) for seed in seeds)
    if value.n > 1 and max(differences) - min(differences) <= rounding:
        return Difference(value.mean, value.mean, value.mean, value.n)
    low, high = mean_interval(value, confidence) or (None, None)
    return Difference(value.mean, low, high, value.n)


def most_frequent(values: pd.Series[Any]) -> Any:
    """Returns the most frequent value, the first one if several are; None if there are no values."""
    counts = Counter(values.dropna().tolist()).most_common(1)
    return counts[0][0] if counts else None


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of finished trials, from a frame of ``read_results``."""
    return trials[trials["status"] == "done"]
