"""The benchmarks run, and what they compare computes the same."""

import math
from collections.abc import Callable

import pytest
from torch import Tensor

from benchmarks import column, column_tables, growth, methods, overhead, pairs, peak, run
from benchmarks.column_times import ColumnTimes
from benchmarks.markdown import Promise
from benchmarks.reference_loop import direct_forms
from benchmarks.step_times import PARTS
from kd_bench import losses
from kd_bench.methods import _connectors
from tests.losses import direct


@pytest.fixture(scope="module")
def trials() -> dict[str, pairs.Trial]:
    return next(iter(pairs.plan_pairs(quick=True).values()))


@pytest.fixture(scope="module")
def timer(trials: dict[str, pairs.Trial], tmp_path_factory: pytest.TempPathFactory) -> column.ColumnTimer:
    folder = tmp_path_factory.mktemp("cache")
    return column.ColumnTimer("tiny", trials, pairs.random_images(256), folder)


@pytest.fixture(scope="module")
def times(timer: column.ColumnTimer) -> ColumnTimes:
    times = ColumnTimes("tiny", 8, *timer.compare_first_losses())
    timer.warm_up()
    times.peak_flops = peak.measure_peak(2, 1)
    timer.time_round(times)
    timer.time_round(times)
    return times


def test_the_reference_loop_and_ours_begin_with_the_same_losses(times: ColumnTimes) -> None:
    assert 0 < times.difference < 1e-5


@pytest.mark.parametrize("label", ["kd", "crd"])
def test_another_loss_is_noticed(label: str, timer: column.ColumnTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "contrast" if label == "crd" else label
    form = getattr(direct, name)
    monkeypatch.setattr(direct, name, lambda *args: 1.01 * form(*args))
    with pytest.raises(RuntimeError, match=f"tiny, {label}: our loss is"):
        timer.compare_first_losses([label])


def test_each_loss_that_has_a_direct_form_is_replaced_by_it_and_put_back() -> None:
    names = [name for name in losses.__all__ if hasattr(direct, name)]
    before, fuse = {name: getattr(losses, name) for name in names}, _connectors.Fusion.forward
    with direct_forms():
        assert _connectors.Fusion.forward is not fuse
        inside: dict[str, Callable[..., Tensor]] = {name: getattr(losses, name) for name in names}
    assert {"kd", "contrast", "rkd_angle", "partial_l2", "hierarchical_context", "dist_terms"} <= set(names)
    # These are put together by the methods from terms, which have forms of their own.
    assert {name for name in names if inside[name] is before[name]} == {"dkd", "gkl", "ikl"}
    assert {name: getattr(losses, name) for name in names} == before
    assert _connectors.Fusion.forward is fuse


def test_a_column_has_every_way_of_every_method(times: ColumnTimes) -> None:
    assert set(times.alone) == {"none", "dist", *pairs.METHODS}
    assert set(times.reference) == set(times.alone) - {"none"}
    by_method = (*times.alone.values(), *times.reference.values())
    assert {len(rounds) for rounds in (*by_method, times.floor, times.cached)} == {2}
    assert {member for member, _ in times.cohort[0].seconds} == {"", *pairs.METHODS}
    assert set(times.floor[0]) == {"teacher", "students", *pairs.METHODS}


def test_cached_logits_were_found(timer: column.ColumnTimer, times: ColumnTimes) -> None:
    assert timer.cached.teacher.cached_seconds() > 0


def test_parts_of_a_step_make_up_the_step(times: ColumnTimes) -> None:
    step = times.alone["kd"][0]
    assert all(step.part(part) > 0 for part in PARTS)
    assert math.isclose(step.part(*PARTS), step.total)


def test_missed_promises_say_where_the_time_is(times: ColumnTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(column_tables.PROMISED, "tiny", (1000.0, 0.001))
    text = column_tables.section([times]).markdown()
    assert "1000.0 times less than the reference; found: " in text
    assert "**(missed)** Of the cohort's step: " in text
    assert "0.001 times less; found" in text
    assert text.count("(missed)") in {1, 2}  # the floor's depends on the machine
    assert "| tiny" in column_tables.steps_section([times]).markdown()
    assert "| tiny" in peak.section([times]).markdown()


def test_every_method_is_compared_with_the_student_alone() -> None:
    times = methods.benchmark(0.0, quick=True)
    assert next(iter(times.methods)) == "none" and {"kd", "crd", "reviewkd", "vid"} < set(times.methods)
    assert set(times.extra("none")) == {0}
    lines = methods.section(times).markdown().splitlines()
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| cifar_resnet14")] == list(times.methods)


def test_a_line_and_its_residual() -> None:
    assert growth.fit_line({1: [3.0], 2: [5.0, 5.0, 9.0], 4: [9.0]}) == pytest.approx((1, 2, 0), abs=1e-12)
    assert growth.fit_line({1: [1.0], 2: [4.0], 4: [16.0]})[2] > growth.LINEAR


def test_growth_takes_all_sizes(trials: dict[str, pairs.Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "STUDENTS", (1, 3))
    sizes = growth.Growth("tiny")
    growth.measure_times(trials["kd"], sizes, 1, 0.0)
    assert list(sizes.students) == [1, 3]
    assert list(sizes.batches) == [2, 4, 8, 16]
    peak, seven = growth.train(next(iter(pairs.plan_pairs(quick=True))), ["kd"] * 3, quick=True)
    assert peak > seven > 2 * 2 * 4 * 78_000  # two students' weights and momentum; the network has 78,000 and more


def test_lightning_takes_part_of_a_step() -> None:
    seconds = overhead.lightning_seconds(students=2, steps=4)
    assert len(seconds) == 3
    assert all(0 < value < 1 for value in seconds)


def test_a_page_of_results(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "new" / "page.md"
    argv = ["run.py", "--quick", "--jobs", "0", "--output", str(page), "--only", "losses", "--only", "adv"]
    monkeypatch.setattr("sys.argv", [*argv, "--only", "loader"])
    assert run.main() == 0
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## What was promised",
        "## Losses",
        "## A step of adversarial training",
        "## Loader",
    ]
    assert "| difference to PIL, the same crops and flips" in text
    assert str(page) in capsys.readouterr().out


def test_a_benchmark_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError("no such thing")

    results, errors = run.run_jobs([run.Job("one", fails), run.Job("two", lambda: 2)], 0)
    assert results == {"two": 2}
    assert errors == {"one": "ValueError: no such thing"}
    assert "one failed: ValueError: no such thing" in run.make_page([], errors, "make bench", 1.0)


def test_a_promise_that_is_not_kept_says_why() -> None:
    kept = Promise("x", "2", "3", True, "because")
    assert kept.markdown() == "- x: 2; found: 3"
    assert Promise("x", "2", "1", False, "Because.").markdown() == "- x: 2; found: 1 **(missed)** Because."
