"""Means, standard deviations and paired differences over seeds.

Sums are exact, because ``statistics`` of the standard library works with rational numbers. Equal trials therefore have
a standard deviation of exactly zero. Every table needs Student's quantile, so it comes from ``scipy.special``:
``scipy.stats`` takes a second to import.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MeanAndStd:
    """Mean and standard deviation of one quantity over trials, in the quantity's unit.

    Attributes:
        mean: Mean over the trials.
        std: Sample standard deviation; None for a single trial.
        n: Number of trials.
    """

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        """Mean and standard deviation, as in ``76.64 ± 0.02``."""
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """Mean difference of a method to the baseline, paired by seed, in the quantity's unit.

    Attributes:
        mean: Mean of the differences.
        low, high: Ends of the confidence interval; None for a single seed.
        n: Number of seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> MeanAndStd | None:
    """Returns mean and sample standard deviation (ddof = 1) of finite values, one a trial; None if there are none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanAndStd(float(statistics.mean(values)), std, len(values))


def mean_interval(value: MeanAndStd, confidence: float = 0.95) -> tuple[float, float] | None:
    """Returns Student's interval of a mean: mean -+ t(n - 1, (1 + confidence) / 2) * std / sqrt(n).

    Args:
        value: Mean, standard deviation and number of the trials.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The ends of the interval; None for a single trial.
    """
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
