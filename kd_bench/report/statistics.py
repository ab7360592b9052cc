"""Means, spreads and paired differences over seeds.

Sums are exact (``statistics`` of the standard library works in rational numbers), so equal trials have a spread of
exactly zero. Only Student's quantile needs SciPy, and of it only ``scipy.special``: ``scipy.stats`` takes a second to
import.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MeanAndStd:
    """What n trials say of one quantity, in the quantity's own unit.

    Attributes:
        mean: Mean over the trials.
        std: Sample standard deviation; None for a single trial, where it is undefined.
        n: Number of trials.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, paired by seed, in the quantity's own unit.

    Attributes:
        mean: Mean of the differences.
        low, high: Ends of the confidence interval; None for a single pair, which says nothing about spread.
        n: Number of pairs, i.e. of seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> MeanAndStd | None:
    """Mean and sample standard deviation.

    mean = sum(x) / n;  std = sqrt(sum((x - mean)^2) / (n - 1)), i.e. ddof = 1.

    Args:
        values: One finite value a trial.

    Returns:
        None where there are no values.
    """
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanAndStd(float(statistics.mean(values)), std, len(values))


def mean_interval(value: MeanAndStd, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of a mean over trials: mean -+ t(n - 1, (1 + confidence) / 2) * std / sqrt(n).

    Args:
        value: The trials' mean, spread and number.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        Its ends; None for a single trial, which says nothing about spread.
    """
    if value.std is None:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(value.n - 1, (1 + confidence) / 2)) * value.std / value.n**0.5
    return value.mean - half, value.mean + half


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Mean difference to a baseline over the seeds that both have, with Student's interval for paired samples.

    With d_i = values_i - baseline_i over the n common seeds,

        mean(d) -+ t(n - 1, (1 + confidence) / 2) * std(d) / sqrt(n),

    std with ddof = 1 and t(df, q) the q-quantile of Student's distribution with df degrees of freedom. Pairing removes
    what the seed does to both alike (the batches, the augmentation, often the initial weights). Differences that are
    all equal give an interval of zero width; differences count as equal when they are so up to the rounding of the
    subtraction (4 units in the last place of the largest operand).

    Args:
        values: Finite value of each seed.
        baseline: The same of the baseline.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        None where no seed is common.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    mean, n = float(statistics.mean(differences)), len(differences)
    if n == 1:
        return Difference(mean, None, None, n)
    rounding = 4 * sys.float_info.epsilon * max(max(abs(values[seed]), abs(baseline[seed])) for seed in seeds)
    if max(differences) - min(differences) <= rounding:
        return Difference(mean, mean, mean, n)

    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * statistics.stdev(differences) / n**0.5
    return Difference(mean, mean - half, mean + half, n)
