"""What differences over seeds prove: tests of a single difference, and their correction for the number of methods.

Each takes the paired differences of one method to the baseline, one a seed. With the few seeds that are usual the exact
sign-flip test cannot reach small values at all (2 / 2^n is the least: 0.25 for three seeds), which is the truth about
three seeds; the t test goes lower because it assumes that differences are normally distributed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

#: Most seeds for which all sign flips are enumerated.
EXACT = 20

#: Sign flips drawn where there are more seeds than that.
DRAWS = 20_000

#: Fewest seeds for which a bootstrap is worth its name: below, resamples repeat too few different values.
BOOTSTRAP_FROM = 8

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Significance:
    """Tests of one method's mean difference to the baseline being zero, two-sided.

    Attributes:
        differences: The paired differences in percentage points, by ascending seed.
        p_t: Of the paired t test; None for a single seed, and where differences have no spread.
        p_flip: Of the exact sign-flip test; None for a single seed.
        p_t_holm: ``p_t`` after Holm's correction for the methods of the pair.
        p_flip_holm: The same of ``p_flip``.
        bootstrap: Ends of the bootstrap interval of the mean; None for fewer than ``BOOTSTRAP_FROM`` seeds.
    """

    differences: tuple[float, ...]
    p_t: float | None
    p_flip: float | None
    p_t_holm: float | None = None
    p_flip_holm: float | None = None
    bootstrap: tuple[float, float] | None = None


def significance(differences: Sequence[float], confidence: float = 0.95) -> Significance:
    """All tests of one method's differences; ``correct`` adds Holm's."""
    return Significance(
        tuple(differences),
        paired_t(differences),
        sign_flip(differences),
        bootstrap=bootstrap_interval(differences, confidence),
    )


def paired_t(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of Student's paired test: t = mean(d) / (std(d) / sqrt(n)), n - 1 degrees of freedom.

    Args:
        differences: One a seed.

    Returns:
        None for fewer than two, and where all are equal: without spread there is no test. Differences are taken for
        equal when they are so up to rounding.
    """
    n = len(differences)
    if n < 2 or max(differences) - min(differences) <= _rounding(differences):
        return None
    from scipy.special import stdtr

    t = statistics.mean(differences) / (statistics.stdev(differences) / n**0.5)
    return min(1.0, 2 * float(stdtr(n - 1, -abs(t))))


def sign_flip(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of the sign-flip test of the mean.

    If the method made no difference, each d_i could as well have had the other sign. The p-value is the share of the
    2^n sign assignments whose mean is at least as far from zero as the one observed. Up to ``EXACT`` seeds all of them
    are enumerated; beyond, ``DRAWS`` are drawn, always the same, and the observed one counts as one of them.

    Returns:
        None for fewer than two differences.
    """
    n = len(differences)
    if n < 2:
        return None
    observed = abs(float(np.sum(differences))) - _rounding(differences)
    if n > EXACT:
        signs = np.random.default_rng(0).integers(0, 2, (DRAWS, n), dtype=np.int8) * 2 - 1
        return float(((abs(signs @ np.asarray(differences)) >= observed).sum() + 1) / (DRAWS + 1))
    sums = np.array([differences[0]])  # the mirrored half, with the first sign turned, is as far from zero
    for value in differences[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((abs(sums) >= observed).mean())


def bootstrap_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The bias-corrected and accelerated bootstrap interval of the mean (BCa; Efron, 1987).

    The resamples are the same at every call.

    Returns:
        None for fewer than ``BOOTSTRAP_FROM`` differences, and where they have no spread.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n < BOOTSTRAP_FROM or np.ptp(values) <= _rounding(differences):
        return None
    from scipy.special import ndtr, ndtri

    means = values[np.random.default_rng(0).integers(0, n, (_RESAMPLES, n))].mean(axis=1)
    below = ((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2
    bias = ndtri(np.clip(below, 1 / _RESAMPLES, 1 - 1 / _RESAMPLES))
    centred = (values.sum() - values) / (n - 1)
    centred = centred.mean() - centred
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = bias + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values after Holm's step-down correction (1979) for all of ``values`` together.

    With p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). A missing value stays
    missing, and counts as one of the m, as the comparison was made.
    """
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * value))
        adjusted[place] = highest
    return adjusted


def correct(family: Sequence[Significance | None]) -> list[Significance | None]:
    """Adds Holm's correction over a family of comparisons; those that are None were not made and do not count."""
    made = [one for one in family if one is not None]
    of_t, of_flip = holm([one.p_t for one in made]), holm([one.p_flip for one in made])
    corrected = iter(
        [replace(one, p_t_holm=t, p_flip_holm=flip) for one, t, flip in zip(made, of_t, of_flip, strict=True)]
    )
    return [None if one is None else next(corrected) for one in family]


def _rounding(differences: Sequence[float]) -> float:
    """Below what sums of such differences are equal; accuracies have at most 7 digits that mean anything."""
    return 1e-12 * max(100.0, float(np.sum(np.abs(differences))))
