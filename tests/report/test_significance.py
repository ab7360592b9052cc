"""Tests of differences, their correction, and ranks: against SciPy, hand-enumerated values and printed tables."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kd_bench.report.ranks import EXACT as RANKS_EXACT
from kd_bench.report.ranks import critical_difference, rank, ranking
from kd_bench.report.significance import (
    BOOTSTRAP_FROM,
    EXACT,
    Significance,
    bootstrap_interval,
    correct,
    holm,
    paired_t,
    sign_flip,
    significance,
)

points = st.integers(-500, 500).map(lambda value: value / 100)


# --- the paired t test ---


@given(st.lists(points, min_size=2, max_size=10))
def test_paired_t_is_scipys(differences: list[float]) -> None:
    p_value = paired_t(differences)
    if len(set(differences)) == 1:
        assert p_value is None
    else:
        assert p_value == pytest.approx(float(stats.ttest_1samp(differences, 0).pvalue), rel=1e-9)


def test_paired_t_by_hand() -> None:
    # 1, 2, 3: mean 2, std 1, t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    assert paired_t([1.0]) is None and paired_t([]) is None
    assert paired_t([0.1 + 0.2, 0.3]) is None, "equal up to rounding"


# --- the sign-flip test ---


@given(st.lists(points, min_size=2, max_size=8))
def test_sign_flip_is_the_enumeration(differences: list[float]) -> None:
    hundredths = [round(100 * value) for value in differences]
    far = [
        abs(sum(sign * value for sign, value in zip(signs, hundredths, strict=True))) >= abs(sum(hundredths))
        for signs in itertools.product((1, -1), repeat=len(hundredths))
    ]
    assert sign_flip(differences) == sum(far) / len(far)


def test_sign_flip_by_hand() -> None:
    assert sign_flip([1.0, 2.0, 3.0]) == 0.25  # only +++ and ---
    assert sign_flip([-1.0, 2.0, 3.0]) == 0.5  # |4|: as far or farther are 4, 6, -4, -6
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.1, 0.2, 0.3, -0.6]) == 1.0, "a sum that is zero up to rounding"
    assert sign_flip([5.0]) is None


@settings(max_examples=10)
@given(st.lists(points, min_size=9, max_size=12))
def test_sign_flip_is_scipys(differences: list[float]) -> None:
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(differences) == pytest.approx(float(expected.pvalue), abs=1e-12)


def test_sign_flip_of_many_seeds_is_drawn_and_near_the_exact_one() -> None:
    draw = np.random.default_rng(1)
    differences = list(draw.normal(0.3, 1.0, EXACT + 5))
    p_value = sign_flip(differences)
    assert p_value == sign_flip(differences), "the same draws every time"
    # for so many the sum is normal under the null hypothesis
    z = abs(sum(differences)) / math.sqrt(sum(value**2 for value in differences))
    assert p_value == pytest.approx(2 * stats.norm.sf(z), abs=0.01)


# --- the bootstrap ---


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_bootstrap_is_scipys_bca(kind: str) -> None:
    draw = np.random.default_rng(2)
    values = getattr(draw, kind)(size=15)
    interval = bootstrap_interval(list(values))
    expected = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=3).confidence_interval
    assert interval == pytest.approx((expected.low, expected.high), abs=0.05 * float(np.std(values)))
    assert interval == bootstrap_interval(list(values))


def test_bootstrap_only_where_n_allows() -> None:
    values = [0.1 * at for at in range(BOOTSTRAP_FROM)]
    assert bootstrap_interval(values) is not None
    assert bootstrap_interval(values[:-1]) is None
    assert bootstrap_interval([1.0] * 20) is None


# --- Holm ---


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    # the missing comparison was made and counts
    assert holm([0.01, None, 0.03]) == pytest.approx([0.03, None, 0.06])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_naive_definition(values: list[float]) -> None:
    order = sorted(range(len(values)), key=lambda at: values[at])
    for position, at in enumerate(order):
        naive = max(min(1.0, (len(values) - j) * values[order[j]]) for j in range(position + 1))
        assert holm(values)[at] == pytest.approx(naive)


def test_correct_counts_the_comparisons_that_were_made() -> None:
    first_tests, second_tests = significance([1.0, 2.0, 3.0]), significance([1.0, 2.0, 9.0])
    corrected = correct({"first": first_tests, "second": second_tests})
    first, second = corrected["first"], corrected["second"]
    assert first.p_t is not None and first.p_t_holm == pytest.approx(2 * first.p_t)
    assert (first.p_flip, first.p_flip_holm) == (0.25, 0.5)
    assert first.bootstrap is None
    assert first_tests.p_t is not None and second_tests.p_t is not None
    assert second == Significance(
        (1.0, 2.0, 9.0), second_tests.p_t, 0.25, max(2 * first_tests.p_t, second_tests.p_t), 0.5
    )


# --- ranks ---


@given(st.lists(st.integers(0, 5).map(float), min_size=2, max_size=7))
def test_ranks_are_scipys(values: list[float]) -> None:
    ranks = rank({str(at): value for at, value in enumerate(values)})
    assert list(ranks.values()) == list(stats.rankdata([-value for value in values]))


def test_equal_means_with_other_last_bits_share_a_rank() -> None:
    mean, other = statistics.mean([50.49, 50.97, 51.93]), statistics.mean([50.33, 50.65, 52.41])
    assert mean != other and rank({"a": mean, "b": other, "c": 50.0}) == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert rank({"a": 51.13, "b": 51.13 + 1e-6}) == {"a": 2.0, "b": 1.0}, "one image of millions is no rounding"


def test_friedman_of_few_methods_and_pairs_is_exact() -> None:
    two, three = {"a": 2.0, "b": 1.0}, {"a": 3.0, "b": 2.0, "c": 1.0}
    same = [ranking([block] * pairs) for block, pairs in ((two, 2), (two, 5), (three, 2))]
    # only the same order in all pairs is as far: half, a sixteenth, and a sixth of the cases
    assert [ranks.p for ranks in same if ranks] == pytest.approx([1 / 2, 1 / 16, 1 / 6])
    # Siegel (1956), Table N: three methods in four pairs, chi2 = 6.5 and 8.0
    other, last = {"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 2.0}
    for blocks, printed in (([three, three, three, last], 0.042), ([three] * 4, 0.0046)):
        ranks = ranking(blocks)
        assert ranks is not None and ranks.p == pytest.approx(printed, abs=5e-4) and ranks.critical is not None
    ranks = ranking([three, other])
    assert ranks is not None and ranks.p == pytest.approx(1 / 2) and ranks.critical is None


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3), min_size=2, max_size=4))
def test_exact_friedman_is_the_enumeration(blocks: list[list[float]]) -> None:
    ranked = [stats.rankdata([-value for value in block]) for block in blocks]
    observed = sum(sum(column) ** 2 for column in zip(*ranked, strict=True))
    far = [
        sum(sum(column) ** 2 for column in zip(*arrangement, strict=True)) >= observed
        for arrangement in itertools.product(*(itertools.permutations(block) for block in ranked))
    ]
    ranks = ranking([dict(zip("abc", block, strict=True)) for block in blocks])
    assert ranks is not None and ranks.p == pytest.approx(sum(far) / len(far))


@given(st.lists(st.lists(st.integers(0, 9).map(float), min_size=4, max_size=4), min_size=5, max_size=8))
def test_friedman_is_scipys_with_iman_and_davenports_f(blocks: list[list[float]]) -> None:
    ranks = ranking([dict(zip("abcd", block, strict=True)) for block in blocks])
    assert ranks is not None and ranks.p is not None
    if all(len(set(block)) == 1 for block in blocks):
        assert ranks.p == 1.0
        return
    chi2 = float(stats.friedmanchisquare(*np.array(blocks).T).statistic)
    n, k = len(blocks), 4
    left = n * (k - 1) - chi2
    assert math.factorial(k) ** (n - 1) > RANKS_EXACT
    expected = 0.0 if left < 1e-9 else float(stats.f.sf((n - 1) * chi2 / left, k - 1, (k - 1) * (n - 1)))
    assert ranks.p == pytest.approx(max(expected, 24 ** (1 - n)), abs=1e-9)
    assert (ranks.critical is None) == (ranks.p >= 0.05)


def test_average_ranks_by_hand() -> None:
    ranks = ranking([{"a": 70.0, "b": 71.0, "c": 72.0}, {"a": 70.0, "b": 70.0, "c": 60.0}])
    assert ranks is not None and ranks.pairs == 2
    assert ranks.average == {"b": 1.75, "c": 2.0, "a": 2.25} and list(ranks.average) == ["b", "c", "a"]
    single = ranking([{"a": 1.0, "b": 2.0}])
    assert single is not None and (single.p, single.critical) == (None, None)
    assert ranking([]) is None


def test_critical_differences_are_those_of_the_printed_table() -> None:
    # Demšar (2006), Table 5(a): q at 0.05 for 2 to 10 methods, by sqrt(k (k + 1) / (6 N))
    printed = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(printed, 2):
        assert critical_difference(k, 10) == pytest.approx(q * math.sqrt(k * (k + 1) / 60), rel=6e-4)
    exact = stats.studentized_range.ppf(0.9, 6, np.inf) / math.sqrt(2)
    assert critical_difference(6, 7, 0.1) == pytest.approx(exact * math.sqrt(42 / 42), rel=1e-6)
