"""Ranks of methods over pairs, as Demšar (2006) compares classifiers over datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Average ranks over the pairs in which all methods are complete. Rank 1 is the best.

    Attributes:
        average: Average rank by label, ascending.
        pairs: Number of pairs.
        p: p-value of Friedman's test, in the form of Iman and Davenport, that all methods rank alike; None for a single
            pair or method.
        critical: Smallest difference of average ranks at which two methods differ at 5 % by Nemenyi's test; None if
            Friedman's test finds no difference.
    """

    average: dict[str, float]
    pairs: int
    p: float | None
    critical: float | None


def rank(values: Mapping[str, float]) -> dict[str, float]:
    """Returns ranks from 1 for the highest value. Equal values share the mean of their ranks."""
    ordered = sorted(values.values(), reverse=True)
    return {label: ordered.index(value) + (ordered.count(value) + 1) / 2 for label, value in values.items()}


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
    """The p-value of Friedman's test on ranks (N, k), corrected for ties, in the form of Iman and Davenport.

    Their F = (N - 1) chi2 / (N (k - 1) - chi2) equals (N - 1) between / within, with the sums of squares of the ranks
    between and within methods, and has k - 1 and (k - 1)(N - 1) degrees of freedom. ``scipy.stats.friedmanchisquare``
    is not used because it needs three methods.
    """
    from scipy.special import fdtrc

    n, k = ranks.shape
    deviations = ranks - (k + 1) / 2
    total, between = float((deviations**2).sum()), n * float((deviations.mean(axis=0) ** 2).sum())
    if total == 0:  # all methods share one rank in every block
        return 1.0
    within = total - between
    if within <= 1e-12 * total:  # all blocks have the same ranks
        return 0.0
    return float(fdtrc(k - 1, (k - 1) * (n - 1), (n - 1) * between / within))
