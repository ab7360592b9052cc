"""Ranks of methods over pairs, as Demšar (2006) compares classifiers over data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Average ranks, 1 the best, over pairs in which all of the methods are complete.

    Attributes:
        average: Average rank by label, ascending.
        pairs: Over how many pairs.
        p: Of Friedman's test, in the form of Iman and Davenport, that all methods rank alike; None for a single pair,
            or one method.
        critical: Difference of average ranks from which on two methods differ at 5 % by Nemenyi's test; None where
            Friedman's test finds nothing, so that no two may be told apart.
    """

    average: dict[str, float]
    pairs: int
    p: float | None
    critical: float | None


def rank(values: Mapping[str, float]) -> dict[str, float]:
    """Ranks from 1 for the highest value; equal values share the mean of their ranks."""
    ordered = sorted(values.values(), reverse=True)
    return {label: ordered.index(value) + (ordered.count(value) + 1) / 2 for label, value in values.items()}


def ranking(blocks: Sequence[Mapping[str, float]], level: float = 0.05) -> Ranking | None:
    """Average ranks over blocks, and whether they differ.

    With N blocks, k methods and average ranks R_j (ties shared), Friedman's statistic, corrected for ties, is

        chi2 = (k - 1) sum_j (N R_j - N (k + 1) / 2)^2 / (sum of all squared ranks - N k (k + 1)^2 / 4),

    Iman and Davenport's F = (N - 1) chi2 / (N (k - 1) - chi2) has k - 1 and (k - 1)(N - 1) degrees of freedom, and
    Nemenyi's critical difference is q sqrt(k (k + 1) / (6 N)), q the quantile of the studentised range of k means with
    infinite degrees of freedom, by sqrt(2).

    Args:
        blocks: Mean accuracy by label, a block a pair; all with the same labels.
        level: Of Friedman's and of Nemenyi's test.

    Returns:
        None where there are no blocks.
    """
    if not blocks:
        return None
    ranks = [rank(block) for block in blocks]
    n, labels = len(blocks), list(blocks[0])
    k = len(labels)
    average = {label: sum(one[label] for one in ranks) / n for label in labels}
    average = dict(sorted(average.items(), key=lambda item: item[1]))
    if n < 2 or k < 2:
        return Ranking(average, n, None, None)
    p = _friedman(ranks, average)
    return Ranking(average, n, p, critical_difference(k, n, level) if p < level else None)


def critical_difference(methods: int, pairs: int, level: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks."""
    q = _range_quantile(methods, 1 - level) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * pairs))


def _range_quantile(k: int, probability: float) -> float:
    """The quantile of the range of k standard normal variables, by bisection.

    Its distribution is k times the integral of phi(x) (Phi(x) - Phi(x - r))^(k - 1) over x, the largest of them. SciPy
    has it in scipy.stats, which takes a second to import.
    """
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(128)
    x = 10 * nodes
    density = 10 * weights * np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = k * float((density * (ndtr(x) - ndtr(x - middle)) ** (k - 1)).sum())
        low, high = (middle, high) if reached < probability else (low, middle)
    return (low + high) / 2


def _friedman(ranks: Sequence[Mapping[str, float]], average: Mapping[str, float]) -> float:
    from scipy.special import fdtrc

    n, k = len(ranks), len(average)
    between = sum((n * one - n * (k + 1) / 2) ** 2 for one in average.values())
    within = sum(one**2 for block in ranks for one in block.values()) - n * k * (k + 1) ** 2 / 4
    if within == 0:  # all methods share one rank in every block
        return 1.0
    chi2 = (k - 1) * between / within
    left = n * (k - 1) - chi2
    if left <= 1e-12 * n * k:  # every block ranks alike
        return 0.0
    return float(fdtrc(k - 1, (k - 1) * (n - 1), (n - 1) * chi2 / left))
