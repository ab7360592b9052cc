"""Statistics of students crossed with teachers, against other ways to compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from kd_bench.report.crossed import (
    Cell,
    balanced,
    crossing,
    difference_of_cells,
    estimate_cells,
    find_cells,
    pair_cells,
)
from kd_bench.report.statistics import Difference, mean_interval, paired_difference

#: Two teachers (rows) and two seeds, worked out by hand below.
BY_HAND: dict[Cell, float] = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 6.0}


def layout(values: np.ndarray) -> dict[Cell, float]:
    return {(a, b): float(values[a, b]) for a in range(values.shape[0]) for b in range(values.shape[1])}


def test_two_by_two_by_hand() -> None:
    analysis = crossing(BY_HAND)
    # means 1.5 and 4.5 of teachers, 2 and 4 of seeds, 3 of all; residuals 0.5, -0.5, -0.5, 0.5
    assert (analysis.mean, analysis.teacher_square, analysis.seed_square, analysis.residual_square) == (
        3.0,
        9.0,
        4.0,
        1.0,
    )
    assert analysis.variances == (4.0, 1.5, 1.0) and analysis.freedom == (1, 1, 1)
    assert analysis.stds == pytest.approx((2.0, math.sqrt(1.5), 1.0))
    assert analysis.std == pytest.approx(math.sqrt(6.5))
    # (9 + 4) / 4 with (9 + 4)^2 / (9^2 + 4^2) degrees of freedom
    assert analysis.error == pytest.approx((13 / 4, 169 / 97))
    t = stats.t.ppf(0.975, 169 / 97) * math.sqrt(13 / 4)
    assert analysis.interval(0.95) == pytest.approx((3 - t, 3 + t))
    assert analysis.p == pytest.approx(2 * stats.t.sf(3 / math.sqrt(13 / 4), 169 / 97))
    assert analysis.text == "2 teachers x 2 seeds"


def test_mean_squares_equal_a_regression_on_teachers_and_seeds() -> None:
    values = np.random.default_rng(1).normal(70, 2, (4, 3))
    teachers, seeds = np.repeat(np.eye(4), 3, axis=0), np.tile(np.eye(3), (4, 1))
    ones, y = np.ones((12, 1)), values.ravel()

    def left(*columns: np.ndarray) -> float:
        """The sum of squares that a regression on these columns leaves."""
        design = np.hstack([ones, *columns])
        return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())

    analysis = crossing(layout(values))
    assert analysis.teacher_square == pytest.approx((left(seeds) - left(teachers, seeds)) / 3)
    assert analysis.seed_square == pytest.approx((left(teachers) - left(teachers, seeds)) / 2)
    assert analysis.residual_square == pytest.approx(left(teachers, seeds) / 6)


def test_variances_equal_restricted_maximum_likelihood() -> None:
    """If no estimate is negative, those of a balanced layout are the REML estimates (Searle et al., section 4.8)."""
    rng = np.random.default_rng(5)
    values = 70 + rng.normal(0, 2, (5, 1)) + rng.normal(0, 1.5, (1, 4)) + rng.normal(0, 1, (5, 4))
    analysis = crossing(layout(values))
    assert analysis.variances is not None and min(analysis.variances) > 0.1
    of_teacher = np.kron(np.eye(5), np.ones((4, 4)))
    of_seed = np.kron(np.ones((5, 5)), np.eye(4))
    y, ones = values.ravel(), np.ones((20, 1))

    def loss(logs: np.ndarray) -> float:
        teacher, seed, residual = np.exp(logs)
        covariance = teacher * of_teacher + seed * of_seed + residual * np.eye(20)
        inverse = np.linalg.inv(covariance)
        information = ones.T @ inverse @ ones
        centred = y - float((ones.T @ inverse @ y)[0] / information[0, 0])
        determinants = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1]
        return float(determinants + centred @ inverse @ centred)

    best = optimize.minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    assert np.exp(best.x) == pytest.approx(analysis.variances, rel=1e-3)


@pytest.mark.parametrize(
    ("teachers", "seeds", "stds"),
    [(3, 3, (1.0, 1.0, 1.0)), (3, 3, (0.0, 0.0, 1.0)), (3, 5, (1.0, 0.0, 0.5)), (5, 3, (0.0, 1.0, 0.5))],
)
def test_simulated_teachers_and_seeds(teachers: int, seeds: int, stds: tuple[float, float, float]) -> None:
    """The variances are unbiased, and the interval of the mean covers it in at least 93 % of 3000 draws."""
    rng, draws = np.random.default_rng(0), 3000
    variances, total, covered = np.zeros(3), 0.0, 0
    for _ in range(draws):
        values = rng.normal(0, stds[0], (teachers, 1)) + rng.normal(0, stds[1], (1, seeds))
        analysis = crossing(layout(values + rng.normal(0, stds[2], (teachers, seeds))))
        low, high = analysis.interval(0.95) or (1.0, 0.0)
        assert analysis.std is not None
        variances += analysis.variances
        total += analysis.std**2
        covered += low <= 0 <= high
    assert variances / draws == pytest.approx(np.square(stds), abs=0.08)
    assert total / draws == pytest.approx(np.square(stds).sum(), abs=0.12)
    assert covered / draws > 0.93


def test_one_seed_or_one_teacher_is_students_interval_over_the_others() -> None:
    values = [61.0, 63.0, 64.5]
    usual = paired_difference(dict(enumerate(values)), dict.fromkeys(range(3), 60.0))
    assert usual is not None
    for cells in ([(at, 7) for at in range(3)], [(7, at) for at in range(3)]):
        base: dict[Cell, float] = dict.fromkeys(cells, 60.0)
        mean_difference, differences = difference_of_cells(dict(zip(cells, values, strict=True)), base)
        assert mean_difference is not None and mean_difference.crossing is not None and differences == (1.0, 3.0, 4.5)
        assert (mean_difference.mean, mean_difference.low, mean_difference.high) == pytest.approx(
            (usual.mean, usual.low, usual.high)
        )
        assert mean_difference.crossing.p == pytest.approx(stats.ttest_1samp([1.0, 3.0, 4.5], 0).pvalue)
        assert mean_difference.crossing.stds is None and not mean_difference.crossing.is_split


def test_a_single_cell_has_no_spread() -> None:
    estimate = estimate_cells({(0, 0): 61.0})
    assert estimate is not None and (estimate.mean, estimate.std, mean_interval(estimate)) == (61.0, None, None)
    assert estimate.crossing is not None and estimate.crossing.p is None


def test_equal_differences_have_no_width_and_no_test() -> None:
    rows = {(a, b): 60 + 0.1 * a + 0.7 * b for a in range(3) for b in range(3)}
    difference, _ = difference_of_cells({cell: value + 0.3 for cell, value in rows.items()}, rows)
    assert difference is not None and difference.low == difference.mean == difference.high == pytest.approx(0.3)
    assert difference.crossing is not None and difference.crossing.p is None and difference.crossing.stds == (0, 0, 0)


def test_negative_estimates_are_zero_and_the_sum_stays_unbiased() -> None:
    analysis = crossing({(0, 0): 1.0, (0, 1): -1.0, (1, 0): -1.0, (1, 1): 1.0})
    assert analysis.variances == (-2.0, -2.0, 4.0) and analysis.stds == (0.0, 0.0, 2.0) and analysis.std == 0.0


def test_a_layout_with_gaps_is_refused_and_cut() -> None:
    with pytest.raises(ValueError, match="not balanced"):
        crossing({(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0})
    full = [(a, b) for a in range(3) for b in range(3)]
    assert balanced(full) == full
    # one gap: its seed is left out, because there are fewer teachers as a rule
    assert balanced([cell for cell in full if cell != (1, 0)]) == [(a, b) for a in range(3) for b in (1, 2)]
    # a teacher that lacks two of three
    assert balanced([cell for cell in full if cell not in ((2, 0), (2, 1))]) == [
        (a, b) for a in (0, 1) for b in range(3)
    ]
    assert balanced([]) == []


def test_means_of_gaps_are_over_equal_seeds() -> None:
    estimate = estimate_cells({(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 6.0, (2, 0): 100.0})
    assert estimate is not None and (estimate.mean, estimate.n) == (3.0, 4)


def test_cells_that_a_row_and_its_baseline_have() -> None:
    alone: dict[Cell, float] = {(None, 0): 10.0, (None, 1): 20.0}
    assert pair_cells(alone, BY_HAND) == {
        (0, 0): (10.0, 1.0),
        (0, 1): (20.0, 2.0),
        (1, 0): (10.0, 3.0),
        (1, 1): (20.0, 6.0),
    }
    assert pair_cells(BY_HAND, alone)[1, 1] == (6.0, 20.0)
    assert pair_cells(alone, {(None, 1): 1.0}) == {(None, 1): (20.0, 1.0)}
    assert pair_cells({(0, 0): 1.0}, {(0, 1): 1.0}) == {}
    assert difference_of_cells({(0, 0): 1.0}, {(0, 1): 1.0}) == (None, ())


def test_a_teacher_for_each_seed_is_no_crossing() -> None:
    assert find_cells([("kd", 0, 0), ("kd", 1, 1)]) == ([(None, 0), (None, 1)], False)
    assert find_cells([("kd", 0, 0), ("kd", 1, 0), ("none", None, 0)]) == ([(0, 0), (1, 0), (None, 0)], True)


def test_the_statistic_of_an_interval_is_named() -> None:
    split, one_teacher = (
        crossing({(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 5.0}),
        crossing({(0, 0): 1.0, (0, 1): 2.0}),
    )
    assert Difference(1.0, 0.0, 2.0, 4, split).test == "quasi-F"
    assert Difference(1.0, 0.0, 2.0, 2, one_teacher).test == Difference(1.0, 0.0, 2.0, 2).test == "paired t"
