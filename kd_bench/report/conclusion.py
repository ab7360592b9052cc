"""States what may be concluded from a table of differences, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kd_bench.report.significance import format_p, holm, paired_t
from kd_bench.report.summary import PairTable, SummaryRow

#: Largest corrected p-value of a difference that is called one.
LEVEL = 0.05

#: Largest number of pairs that have a sentence each.
_MOST_SENTENCES = 3


def conclusions(pairs: Sequence[PairTable], baseline: str) -> Iterator[str]:
    """Yields what the differences to the baseline show: a sentence for each pair, or one for many pairs together.

    A method is above or below the baseline if the paired t test says so at 5 % after Holm's correction for the methods
    of the pair. Rows that may not be compared do not count.
    """
    compared = [(pair, rows) for pair in pairs if (rows := _compared(pair))]
    if not compared:
        return
    if len(compared) > _MOST_SENTENCES:
        yield _over_pairs([rows for _, rows in compared], baseline)
        return
    for pair, rows in compared:
        subject = "What this shows" if len(compared) == 1 else f"What {pair.title} shows"
        yield f"{subject}: {_sentence(rows, baseline)}"


def _compared(pair: PairTable) -> list[SummaryRow]:
    return [row for row in pair.rows if row.kind == "method" and row.differences and row.comparable]


def _corrected(rows: Sequence[SummaryRow]) -> list[float | None]:
    """Returns the p-values of the rows' paired t tests after Holm's correction; None without spread."""
    return holm([paired_t(row.differences) for row in rows])


def _sign(row: SummaryRow, p: float | None) -> int:
    """Returns 1 if the method is above the baseline, -1 if it is below, and 0 if neither is shown."""
    return 0 if p is None or p > LEVEL else 1 if sum(row.differences) > 0 else -1


def _sentence(rows: Sequence[SummaryRow], baseline: str) -> str:
    seeds = sorted({len(row.differences) for row in rows})
    if seeds[-1] == 1:
        return f"nothing about differences to {baseline}, because one seed has no spread to compare them with."
    groups: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for row, p in zip(rows, _corrected(rows), strict=True):
        groups[_sign(row, p)].append(row.name if p is None else f"{row.name} (p {format_p(p)})")
    parts = [
        f"{_list(names)} {_verb(names)} {phrase} {baseline}"
        for names, phrase in ((groups[1], "above"), (groups[-1], "below"))
        if names
    ]
    if groups[0]:
        parts.append(f"{_list(groups[0])} cannot be told from {baseline}")
    over = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    methods = "1 method" if len(rows) == 1 else f"{len(rows)} methods, which the intervals do not have"
    return (
        f"{'; '.join(parts)} at 5 % (paired t test over {over}, p after Holm's correction for {methods}). It holds for "
        "this pair, its settings and its teacher. What cannot be told apart may still differ by as much as its "
        "interval allows."
    )


def _over_pairs(rows_of_pairs: Sequence[Sequence[SummaryRow]], baseline: str) -> str:
    counts: dict[str, list[int]] = {}
    for rows in rows_of_pairs:
        for row, p in zip(rows, _corrected(rows), strict=True):
            sign = _sign(row, p)
            above, below, pairs = counts.setdefault(row.name, [0, 0, 0])
            counts[row.name] = [above + (sign > 0), below + (sign < 0), pairs + 1]
    verdicts = ", ".join(
        f"{name} above in {above}, below in {below} of {n}" for name, (above, below, n) in counts.items()
    )
    return (
        f"What this shows, by the number of pairs in which a method differs from {baseline} (paired t test, 5 % after "
        f"Holm's correction within the pair): {verdicts}. In the other pairs it cannot be told from {baseline}."
    )


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
