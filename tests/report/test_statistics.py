import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kd_bench.report.statistics import Difference, MeanAndStd, estimate, paired_difference

percent = st.floats(0, 100)
by_seed = st.dictionaries(st.integers(0, 9), percent)


@given(st.lists(percent, min_size=2, max_size=12))
def test_estimate_is_the_naive_definition(values: list[float]) -> None:
    mean_and_std = estimate(values)
    assert mean_and_std is not None and mean_and_std.std is not None
    mean = math.fsum(values) / len(values)
    assert mean_and_std.mean == pytest.approx(mean, rel=1e-12, abs=1e-12)
    naive = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))
    assert mean_and_std.std == pytest.approx(naive, rel=1e-9, abs=1e-12)
    assert mean_and_std.n == len(values)


@given(percent, st.integers(2, 12))
def test_equal_trials_have_no_spread_at_all(value: float, n: int) -> None:
    assert estimate([value] * n) == MeanAndStd(value, 0.0, n)


def test_small_samples() -> None:
    assert estimate([]) is None
    assert estimate([63.1]) == MeanAndStd(63.1, None, 1)
    assert estimate([1.0, 2.0, 4.0]) == MeanAndStd(7 / 3, math.sqrt(7 / 3), 3)


@given(by_seed, by_seed)
def test_difference_is_the_paired_t_interval(values: dict[int, float], baseline: dict[int, float]) -> None:
    difference = paired_difference(values, baseline)
    common = sorted(set(values) & set(baseline))
    if not common:
        assert difference is None
        return
    assert difference is not None and difference.n == len(common)
    differences = [values[seed] - baseline[seed] for seed in common]
    mean = math.fsum(differences) / len(common)
    assert difference.mean == pytest.approx(mean, rel=1e-12, abs=1e-12)
    if len(common) == 1:
        assert difference.low is None and difference.high is None
        return
    assert difference.low is not None and difference.high is not None
    std = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (len(common) - 1))
    half = stats.t.ppf(0.975, len(common) - 1) * std / math.sqrt(len(common))
    assert difference.low == pytest.approx(mean - half, rel=1e-9, abs=1e-11)
    assert difference.high == pytest.approx(mean + half, rel=1e-9, abs=1e-11)


@given(st.lists(st.tuples(percent, percent), min_size=2, max_size=8), st.floats(0.5, 0.999))
def test_difference_agrees_with_scipy(pairs: list[tuple[float, float]], confidence: float) -> None:
    values, baseline = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    difference = paired_difference(values, baseline, confidence)
    assert difference is not None
    if difference.low == difference.high:  # SciPy divides by the spread
        assert max(a - b for a, b in pairs) - min(a - b for a, b in pairs) <= 1e-13
        return
    interval = stats.ttest_rel(list(values.values()), list(baseline.values())).confidence_interval(confidence)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-10)


@given(st.lists(percent, min_size=2, max_size=8), st.floats(-5, 5))
def test_a_constant_shift_has_an_interval_of_zero_width(baseline: list[float], shift: float) -> None:
    difference = paired_difference({s: x + shift for s, x in enumerate(baseline)}, dict(enumerate(baseline)))
    assert difference is not None
    assert difference.low == difference.mean == difference.high
    assert difference.mean == pytest.approx(shift, abs=1e-13)


def test_pairs_go_by_seed_and_not_by_order() -> None:
    assert paired_difference({2: 12.0, 0: 10.0}, {0: 9.0, 1: 50.0, 2: 11.0}) == Difference(1.0, 1.0, 1.0, 2)
    assert paired_difference({0: 10.0}, {0: 9.5}) == Difference(0.5, None, None, 1)
    assert paired_difference({0: 10.0}, {1: 9.5}) is None


def test_differences_worth_a_single_image_are_no_rounding() -> None:
    """Two differences that differ by one image of a million keep an interval."""
    difference = paired_difference({0: 60.0, 1: 60.0001}, {0: 50.0, 1: 50.0})
    assert difference is not None and difference.low is not None and difference.high is not None
    # two values 1e-4 apart: std / sqrt(2) = 5e-5, and t(1, 0.975) = tan(0.475 pi)
    assert difference.high - difference.low == pytest.approx(1e-4 * math.tan(0.475 * math.pi), rel=1e-6)


def test_a_table_imports_no_torch_and_no_scipy_stats() -> None:
    code = """if True:
        import sys
        import kd_bench.report.summary_text, kd_bench.report.summarise
        assert "pandas" not in sys.modules, "formats alone needs no pandas"
        from kd_bench.report import results_frame
        from kd_bench.report.statistics import paired_difference
        paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0})
        heavy = {"torch", "timm", "pytorch_lightning", "scipy.stats", "sklearn", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True)
