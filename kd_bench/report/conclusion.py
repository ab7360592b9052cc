"""States what may be concluded from a table of differences, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kd_bench.report.significance import format_p, holm
from kd_bench.report.summary import PairTable, SummaryRow

#: Largest corrected p-value of a difference that is called one.
LEVEL = 0.05

#: Largest number of pairs that have a sentence each.
_MOST_SENTENCES = 3

#: Largest number of methods without a difference that are named.
_MOST_NAMES = 10


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
        yield f"{subject}: {_sentence(rows, pair, baseline)}"


def _compared(pair: PairTable) -> list[SummaryRow]:
    return [row for row in pair.rows if row.kind == "method" and row.differences and row.comparable]


def _corrected(rows: Sequence[SummaryRow]) -> list[float | None]:
    """Returns the p-values of the rows' differences after Holm's correction; None without spread."""
    return holm([row.p_t for row in rows])


def _sign(row: SummaryRow, p: float | None) -> int:
    """Returns 1 if the method is above the baseline, -1 if it is below, and 0 if neither is shown."""
    return 0 if p is None or p > LEVEL else 1 if sum(row.differences) > 0 else -1


def _sentence(rows: Sequence[SummaryRow], pair: PairTable, baseline: str) -> str:
    if all(len(row.differences) == 1 for row in rows):
        return _one_seed(baseline)
    corrected = _corrected(rows)
    tested = [(row, p) for row, p in zip(rows, corrected, strict=True) if p is not None]
    untested = _untested([row for row, p in zip(rows, corrected, strict=True) if p is None])
    if not tested:
        return f"nothing about differences to {baseline}. {untested}"
    groups: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for row, p in tested:
        groups[_sign(row, p)].append(f"{row.name} (p {format_p(p)})")
    parts = [
        f"{_list(names)} {_verb(names)} {phrase} {baseline}"
        for names, phrase in ((groups[1], "above"), (groups[-1], "below"))
        if names
    ]
    if len(groups[0]) > _MOST_NAMES:
        least = min(p for _, p in tested if p > LEVEL)
        subject = "" if untested else "the other " if parts else "all "
        parts.append(
            f"{subject}{len(groups[0])} methods (p {format_p(least)} or more) cannot be distinguished from {baseline}"
        )
    elif groups[0]:
        parts.append(f"{_list(groups[0])} cannot be distinguished from {baseline}")
    test, holds = _scope([row for row, _ in tested], pair)
    methods = "1 method" if len(rows) == 1 else f"{len(rows)} methods; the intervals are not corrected"
    sentences = [
        f"{'; '.join(parts)} at 5 % ({test}, p after Holm's correction for {methods}).",
        f"It holds for {holds}.",
    ]
    if groups[0]:
        sentences.append("What cannot be distinguished may still differ by as much as its interval allows.")
    return " ".join(filter(None, (*sentences, untested)))


def _scope(rows: Sequence[SummaryRow], pair: PairTable) -> tuple[str, str]:
    """Returns the test of the rows' differences, and what its result holds for."""
    crossed = [row.difference.crossing for row in rows if row.difference and row.difference.crossing]
    if not crossed:
        seeds = sorted({len(row.differences) for row in rows})
        over = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        holds = "this pair, its settings and its teacher" if pair.teacher else "this student and its settings"
        return f"paired t test over {over}", holds
    test = f"test of the interval over {_list(list(dict.fromkeys(crossing.text for crossing in crossed)))}"
    single = ["one teacher"] * any(crossing.teachers == 1 for crossing in crossed)
    single += ["one seed of the student"] * any(crossing.seeds == 1 for crossing in crossed)
    if single:
        return test, f"this pair and its settings, and where there is {' or '.join(single)} only, for that one"
    return test, "this pair, its settings and teachers that are trained like these"


def _untested(rows: Sequence[SummaryRow]) -> str:
    """Returns a sentence about the rows whose differences have no spread; empty if there are none."""
    of_one_seed = [row.name for row in rows if len(row.differences) == 1]
    of_several = [row.name for row in rows if len(row.differences) > 1]
    kinds = ((of_one_seed, "one seed"), (of_several, "the same difference in every seed"))
    texts = [
        f"{_list(names) if len(names) <= _MOST_NAMES else f'{len(names)} methods'} ({reason})"
        for names, reason in kinds
        if names
    ]
    return f"Not tested: {'; '.join(texts)}." if texts else ""


def _over_pairs(rows_of_pairs: Sequence[Sequence[SummaryRow]], baseline: str) -> str:
    counts: dict[str, list[int]] = {}
    all_tested = True
    for rows in rows_of_pairs:
        for row, p in zip(rows, _corrected(rows), strict=True):
            all_tested &= p is not None
            sign = _sign(row, p)
            above, below, pairs = counts.setdefault(row.name, [0, 0, 0])
            counts[row.name] = [above + (sign > 0), below + (sign < 0), pairs + 1]
    if all(len(row.differences) == 1 for rows in rows_of_pairs for row in rows):
        return f"What this shows: {_one_seed(baseline)}"
    verdicts = [
        f"{name} above in {above}, below in {below} of {n}"
        for name, (above, below, n) in counts.items()
        if above or below
    ]
    summary = ", ".join(verdicts) or f"none of {len(counts)} methods in any pair"
    crossed = any(row.difference and row.difference.crossing for rows in rows_of_pairs for row in rows)
    test = "test of the interval" if crossed else "paired t test"
    otherwise = "" if all_tested else ", or it is not tested (one seed, or the same difference in every seed)"
    return (
        f"What this shows, by the number of pairs in which a method differs from {baseline} ({test}, 5 % after "
        f"Holm's correction within the pair): {summary}. Otherwise a method cannot be distinguished from "
        f"{baseline}{otherwise}."
    )


def _one_seed(baseline: str) -> str:
    return f"nothing about differences to {baseline}, because one seed has no spread to compare them with."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
