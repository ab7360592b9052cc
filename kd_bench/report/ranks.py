"""Ranks of methods over pairs, as Demšar (2006) compares classifiers over datasets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Largest number of arrangements of ranks of which Friedman's test is computed exactly.
EXACT = 50_000

#: Decimals of the means that are ranked. Equal means of different accuracies may differ in the last bits.
_DECIMALS = 9


@dataclass(frozen=True)
class Ranking:
    """Average ranks over the pairs in which all methods are complete. Rank 1 is the best.

    Attributes:
        average: Average rank by label, ascending.
        pairs: Number of pairs.
        p: p-value of Friedman's test that all methods rank alike: of its exact distribution with few methods and pairs,
            otherwise in the form of Iman and Davenport; None for a single pair or method.
        critical: Smallest difference of average ranks at which two methods differ at 5 % by Nemenyi's test; None if
            Friedman's test finds no difference.
    """

    average: dict[str, float]
    pairs: int
    p: float | None
    critical: float | None


def rank(values: Mapping[str, float]) -> dict[str, float]:
    """Returns ranks from 1 for the highest value. Values equal up to rounding share the mean of their ranks."""
    rounded = {label: round(value, _DECIMALS) for label, value in values.items()}
    ordered = sorted(rounded.values(), reverse=True)
    return {label: ordered.index(value) + (ordered.count(value) + 1) / 2 for label, value in rounded.items()}


def ranking(blocks: Sequence[Mapping[str, float]], level: float = 0.05) -> Ranking | None:
    """Returns average ranks over blocks, and tests whether they differ.

    Args:
        blocks: Mean accuracy by label, one block a pair, all with the same labels.
        level: Level of Friedman's and of Nemenyi's test.

    Returns:
        None if there are no blocks.
    """
    if not blocks:
        return None
    labels = list(blocks[0])
    ranks = np.array([[block[label] for label in labels] for block in map(rank, blocks)])
    n, k = len(blocks), len(labels)
    average = dict(sorted(zip(labels, ranks.mean(axis=0).tolist(), strict=True), key=lambda item: item[1]))
    if n < 2 or k < 2:
        return Ranking(average, n, None, None)
    p = _friedman(ranks)
    return Ranking(average, n, p, critical_difference(k, n, level) if p < level else None)


def critical_difference(methods: int, pairs: int, level: float = 0.05) -> float:
    """Returns Nemenyi's critical difference of average ranks, q sqrt(k (k + 1) / (6 N)) for k methods and N pairs.

    q is the quantile of the studentised range of k means with infinite degrees of freedom, divided by sqrt(2).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * pairs))


def _friedman(ranks: np.ndarray) -> float:
    """The p-value of Friedman's test on ranks (N, k), corrected for ties.

    It is exact up to ``EXACT`` arrangements, otherwise in the form of Iman and Davenport: their
    F = (N - 1) chi2 / (N (k - 1) - chi2) equals (N - 1) between / within, with the sums of squares of the ranks between
    and within methods, and has k - 1 and (k - 1)(N - 1) degrees of freedom. With few methods and pairs F is far too
    sure: its p is 0 for two methods that have the same order in two pairs, which chance alone gives in half of the
    cases. ``scipy.stats.friedmanchisquare`` is not used because it needs three methods.
    """
    n, k = ranks.shape
    if math.factorial(k) ** (n - 1) <= EXACT:
        return _exact_friedman(ranks)
    from scipy.special import fdtrc

    deviations = ranks - (k + 1) / 2
    total, between = float((deviations**2).sum()), n * float((deviations.mean(axis=0) ** 2).sum())
    if total == 0:  # all methods share one rank in every block
        return 1.0
    within = total - between
    least = math.exp((1 - n) * math.lgamma(k + 1))  # the share of a single arrangement, 1 / k!^(N - 1)
    if within <= 1e-12 * total:  # all blocks have the same ranks
        return least
    return max(least, float(fdtrc(k - 1, (k - 1) * (n - 1), (n - 1) * between / within)))


def _exact_friedman(ranks: np.ndarray) -> float:
    """The share of all arrangements of each pair's ranks whose rank sums differ at least as much as those of ``ranks``.

    By symmetry the first pair keeps its ranks.
    """
    sums = ranks[:1]
    for block in ranks[1:]:
        orders = np.array(list(itertools.permutations(block)))
        sums = (sums[:, None] + orders).reshape(-1, ranks.shape[1])
    observed = float((ranks.sum(axis=0) ** 2).sum())
    return float(((sums**2).sum(axis=1) >= observed - 1e-9).mean())
