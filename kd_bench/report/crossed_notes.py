"""Sentences below a table about students that are crossed with several teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kd_bench.report.crossed import Crossing, Parts
from kd_bench.report.summary import PairTable, SummaryRow

_LAYOUT = (
    "Several teachers: 3 x 3 stands for 3 teachers x 3 seeds, where each seed of the student is trained with each "
    "teacher; the student alone has one trial a seed. Behind ± is then the standard deviation of a single training "
    "with another teacher and another seed. If a trial is missing, the row's means leave out its seed, or its teacher, "
    "because all teachers of a mean have the same seeds."
)

#: What the differences of such pairs are, and their p-values, which are based on the same distribution.
CROSSED_DIFFERENCE = (
    "Difference: method minus {baseline} in percentage points, paired by teacher and seed, over the teachers and seeds "
    "that both have; {confidence} % interval for other teachers and other seeds (quasi-F, Satterthwaite; of a single "
    "teacher or seed, for that one only), not corrected for the number of methods. P-values, where shown: two-sided, "
    "of the same statistic; in brackets after Holm's correction for the methods of the pair. Trials that share a "
    "teacher or a seed are not independent, so there is no test of sign flips, and ranks count a pair once."
)


def crossed_notes(pairs: Sequence[PairTable]) -> Iterator[str]:
    """Yields what the numbers of pairs with several teachers are, and how much of the spread is due to what."""
    crossed = [pair for pair in pairs if pair.crossed]
    if crossed:
        yield _LAYOUT
    for pair in crossed:
        yield from _spread(pair, pair.title if len(pairs) > 1 else "")


class SplitRow(NamedTuple):
    """A row whose spread can be split: the analyses of its accuracy, and of its difference to the baseline if any."""

    row: SummaryRow
    top1: Crossing
    difference: Crossing | None


def split_rows(pair: PairTable) -> list[SplitRow]:
    """Returns the rows of a pair whose spread can be split."""
    rows = []
    for row in pair.rows:
        difference = row.difference.crossing if row.difference and row.kind == "method" else None
        if row.top1 and row.top1.crossing and row.top1.crossing.is_split:
            rows.append(SplitRow(row, row.top1.crossing, difference if difference and difference.is_split else None))
    return rows


def freedom_text(rows: Sequence[SplitRow]) -> str:
    """Returns the degrees of freedom of the three parts, as in ``2, 2 and 4``; of several layouts as ``1 to 2``."""
    texts = []
    for values in zip(*(crossing.freedom for _, *both in rows for crossing in both if crossing), strict=True):
        low, high = f"{min(values):.0f}", f"{max(values):.0f}"
        texts.append(low if low == high else f"{low} to {high}")
    return f"{texts[0]}, {texts[1]} and {texts[2]}"


def _spread(pair: PairTable, title: str) -> Iterator[str]:
    """Yields the parts of the spread of accuracies, and of differences."""
    rows = split_rows(pair)
    of = f" in {title}" if title else ""
    if not rows:
        yield f"Spread{of}: it cannot be split yet, because no row has two teachers with the same two seeds."
        return
    parts = "the teacher's seed / the student's seed / the residual (their interaction)"
    accuracies = "; ".join(f"{row.name} {_text(crossing.stds)}" for row, crossing, _ in rows)
    differences = "; ".join(f"{row.name} {_text(crossing.stds)}" for row, _, crossing in rows if crossing)
    of_differences = f". Of the difference: {differences}" if differences else ""
    freedom = freedom_text(rows)
    yield (
        f"Spread of top-1{of}, as standard deviations in points due to {parts}: {accuracies}{of_differences}. They "
        f"rest on {freedom} degrees of freedom, so they are rough; 0.00 stands for an estimated variance of zero or "
        "below."
    )


def _text(stds: Parts | None) -> str:
    return " / ".join(f"{value:.2f}" for value in stds or ())
