"""The sentence below a table says what its differences show, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kd_bench.report.conclusion import conclusions
from kd_bench.report.crossed import Crossing
from kd_bench.report.statistics import Difference
from kd_bench.report.summary import PairTable, RowKind, SummaryRow


def row(label: str, *differences: float, kind: RowKind = "method", comparable: bool = True) -> SummaryRow:
    return SummaryRow(kind, label, None, None, None, None, (), differences=differences, comparable=comparable)


def pair(*rows: SummaryRow, student: str = "small") -> PairTable:
    return PairTable("digits", "large", student, rows)


ABOVE, BELOW, UNCLEAR = (3.0, 3.1, 2.9, 3.0, 3.2), (-3.0, -3.1, -2.9, -3.0, -3.2), (3.0, -2.0, 1.0, -1.0, 0.5)


def test_methods_are_above_below_or_cannot_be_distinguished() -> None:
    rows = (row("kd"), row("up", *ABOVE), row("high", *ABOVE), row("down", *BELOW), row("maybe", *UNCLEAR))
    (sentence,) = conclusions([pair(*rows)], "kd")
    assert sentence.startswith(
        "What this shows: up (p < 0.001) and high (p < 0.001) are above kd; down (p < 0.001) is below kd; maybe (p "
        "0.745) cannot be distinguished from kd at 5 % (paired t test over 5 seeds, p after Holm's correction for 4 "
        "methods; the intervals are not corrected)."
    )


def test_the_correction_counts_all_methods() -> None:
    close = (1.0, 2.0, 0.2, 1.5, 0.4)  # p = 0.03 alone
    (alone,) = conclusions([pair(row("close", *close))], "kd")
    (of_three,) = conclusions([pair(row("close", *close), row("maybe", *UNCLEAR), row("other", *UNCLEAR))], "kd")
    assert "close (p 0.038) is above kd at 5 % (" in alone
    assert "for 1 method)" in alone
    assert "close (p 0.115), maybe (p 1.000) and other (p 1.000) cannot be distinguished from kd" in of_three


def test_one_seed_shows_nothing() -> None:
    (sentence,) = conclusions([pair(row("up", 5.0))], "kd")
    assert sentence == (
        "What this shows: nothing about differences to kd, because one seed has no spread to compare them with."
    )


def test_rows_of_another_protocol_and_other_kinds_do_not_count() -> None:
    rows = (row("alone", *BELOW, kind="student"), row("other", *ABOVE, comparable=False))
    assert list(conclusions([pair(*rows)], "kd")) == []
    assert list(conclusions([], "kd")) == []


def test_pairs_have_a_sentence_each_and_many_pairs_one_together() -> None:
    two = [pair(row("up", *ABOVE), student=name) for name in ("a", "b")]
    first, second = conclusions(two, "kd")
    assert first.startswith("What large → a on digits shows: up (p < 0.001) is above kd")
    assert second.startswith("What large → b on digits shows: up (p < 0.001) is above kd")
    many = [*two, pair(row("up", *BELOW)), pair(row("up", *UNCLEAR), row("new", *ABOVE))]
    (sentence,) = conclusions(many, "kd")
    assert "up above in 2, below in 1 of 4, new above in 1, below in 0 of 1." in sentence


def test_many_methods_without_a_difference_are_counted() -> None:
    unclear = [row(f"m{number}", *UNCLEAR) for number in range(11)]
    (sentence,) = conclusions([pair(*unclear)], "kd")
    same = "cannot be distinguished from kd"
    assert sentence.startswith(f"What this shows: all 11 methods (p 1.000 or more) {same} at 5 % (")
    (sentence,) = conclusions([pair(row("up", *ABOVE), *unclear)], "kd")
    assert f"up (p < 0.001) is above kd; the other 11 methods (p 1.000 or more) {same}" in sentence
    (sentence,) = conclusions([pair(*unclear, *(row(f"new{number}", 1.0) for number in range(11)))], "kd")
    assert sentence.startswith(f"What this shows: 11 methods (p 1.000 or more) {same} at 5 % (")
    assert sentence.endswith("Not tested: 11 methods (one seed).")


def test_many_pairs_name_only_methods_that_differ() -> None:
    rows = (row("up", *ABOVE), row("maybe", *UNCLEAR))
    (sentence,) = conclusions([pair(*rows)] * 4, "kd")
    assert "within the pair): up above in 4, below in 0 of 4. Otherwise a method cannot be distinguished" in sentence
    (sentence,) = conclusions([pair(row("a", *UNCLEAR), row("b", *UNCLEAR))] * 4, "kd")
    assert "within the pair): none of 2 methods in any pair. Otherwise" in sentence
    (sentence,) = conclusions([pair(row("a", 1.0), row("b", 2.0))] * 4, "kd")
    assert sentence.startswith("What this shows: nothing about differences to kd, because one seed")


@pytest.mark.parametrize("differences", [(0.0, 0.0, 0.0), (2.0, 2.0, 2.0)])
def test_differences_without_spread_are_not_called_indistinguishable(differences: tuple[float, ...]) -> None:
    """Their interval has no width, so that nothing "may still differ by as much as it allows"."""
    (sentence,) = conclusions([pair(row("same", *differences))], "kd")
    assert sentence == (
        "What this shows: nothing about differences to kd. Not tested: same (the same difference in every seed)."
    )
    rows = (row("up", *ABOVE), row("same", *differences), row("new", 1.0))
    (sentence,) = conclusions([pair(*rows)], "kd")
    assert "up (p < 0.001) is above kd at 5 % (paired t test over 5 seeds, p after Holm's correction for 3" in sentence
    assert sentence.endswith("Not tested: new (one seed); same (the same difference in every seed).")
    assert "distinguished" not in sentence
    (sentence,) = conclusions([pair(*rows)] * 4, "kd")
    assert sentence.endswith("from kd, or it is not tested (one seed, or the same difference in every seed).")


def test_a_student_without_a_teacher_has_no_pair() -> None:
    (sentence,) = conclusions([PairTable("digits", "", "small", (row("lsr", *UNCLEAR),))], "none")
    assert "It holds for this student and its settings. What cannot be" in sentence


def test_single_teachers_and_single_seeds_are_named() -> None:
    layouts = [Crossing(2, 1, 1.0, 0.5, None, None), Crossing(1, 2, 1.0, None, 0.5, None)]
    rows = [
        replace(row(f"m{number}", *UNCLEAR[:2]), difference=Difference(1.0, 0.0, 2.0, 2, layout))
        for number, layout in enumerate(layouts)
    ]
    (sentence,) = conclusions([pair(*rows)], "kd")
    assert "over 2 teachers x 1 seed and 1 teacher x 2 seeds, p after" in sentence
    assert "where there is one teacher or one seed of the student only, for that one." in sentence
