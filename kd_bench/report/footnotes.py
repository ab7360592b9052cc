"""The sentences below a table: what its columns mean, what is incomplete, why trials failed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from kd_bench.report.ranks import Ranking

if TYPE_CHECKING:
    import pandas as pd

    from kd_bench.report.table import PairTable


#: What footnotes about columns begin with that only long layouts have.
LONG_ONLY = ("Difference:", "No differences:", "P-values", "Best epoch:", "Seconds an epoch:", "Minus published:")


def footnotes(
    frame: pd.DataFrame,
    pairs: tuple[PairTable, ...],
    baseline: str,
    labels: list[str],
    rankings: tuple[tuple[str, Ranking], ...],
    confidence: float,
) -> list[str]:
    """What the columns mean, and over what they are taken."""
    if not pairs:
        return ["No trials are planned."]
    notes = []
    trials = Counter(frame.drop_duplicates("trial_id")["status"])
    if trials["done"] < trials.total():
        lacking = ", ".join(f"{trials[s]} {s}" for s in ("failed", "unreadable", "missing") if trials[s])
        notes.append(f"Incomplete: {trials['done']} of {count(trials.total(), 'planned trial')} done ({lacking}).")
    left_out = sum(row.other for pair in pairs for row in pair.rows)
    if left_out:
        notes.append(f"Left out of every mean: {count(left_out, 'trial')} of another protocol than the line's others.")
    notes.append(
        "Top-1: accuracy on the test set after the last epoch, in percent; mean ± sample standard deviation (ddof = 1) "
        "over n trials, one a seed (of the teacher: over n teachers); (2/3) stands for 2 of 3 planned trials."
    )
    if baseline in labels:
        percent = round(100 * confidence)
        sizes = sorted({row.difference.n for pair in pairs for row in pair.rows if row.difference})
        if not sizes:
            over = "the seeds that both have"
        elif len(sizes) == 1:
            over = f"the {count(sizes[0], 'seed')} that both have"
        else:
            over = f"the {sizes[0]} to {sizes[-1]} seeds that both have"
        notes.append(
            f"Difference: method minus {baseline} in percentage points, paired by seed: mean over {over}, {percent} % "
            "interval of the paired t distribution (none for a single seed), not corrected for the number of methods."
        )
        if any(row.significance and row.significance.p_flip for pair in pairs for row in pair.rows):
            notes.append(
                "P-values, where shown: two-sided; of the paired t test, and of the exact test that flips the signs of "
                f"the differences (for n = {max(sizes)} never below {2 / 2 ** min(max(sizes), 60):.2g}); in "
                "brackets after Holm's correction for the methods of the pair."
            )
    else:
        notes.append(f"No differences: the recipe plans no {baseline!r} to compare with (it has {', '.join(labels)}).")
    notes.append("Best epoch: selected by its accuracy on the test set itself, therefore optimistic; mean ± std.")
    notes.append(
        "Seconds an epoch: mean cost of training when run alone: the trial's own steps plus the shared data and "
        "teacher pass."
    )
    notes += [_of_ranks(dataset, found, len(rankings) > 1) for dataset, found in rankings]
    for dataset, cells in frame.groupby("dataset", sort=False):
        facts = [f"Dataset: {dataset}"]
        usual = commonest(cells.loc[cells["status"] == "done", "epochs"])
        if usual:
            facts.append(f"{count(usual, 'epoch')} a trial")
        taught = {n for p in pairs if p.dataset == dataset for r in p.rows if r.kind == "teacher" for n in r.epochs}
        if taught:
            facts.append(f"teachers {' or '.join(str(epochs) if epochs else 'given' for epochs in sorted(taught))}")
        notes.append(f"{', '.join(facts)}.")
    return notes


def _of_ranks(dataset: str, found: Ranking, several: bool) -> str:
    """The average ranks, and what may be concluded from them."""
    ranks = ", ".join(f"{label} {value:.2f}" for label, value in found.average.items())
    test = "" if found.p is None else f"; Friedman's test that all rank alike: p = {found.p:.3g}"
    critical = (
        "so no two are told apart"
        if found.critical is None
        else f"two differ at 5 % (Nemenyi) from a difference of {found.critical:.2f} on"
    )
    return (
        f"Average rank{f' on {dataset}' * several} over the {count(found.pairs, 'pair')} in which all methods are "
        f"complete, 1 the best: {ranks}{test}; {critical}. Pairs that share a network are not independent."
    )


def problems(frame: pd.DataFrame) -> list[str]:
    """Why trials, and teachers' own trials, are failed or unreadable; each of them once."""
    sentences = {}
    texts = [
        "label",
        "teacher",
        "student",
        "trial_id",
        "teacher_id",
        "status",
        "reason",
        "teacher_status",
        "teacher_reason",
    ]
    for row in frame[[*texts, "seed"]].fillna(dict.fromkeys(texts, "")).to_dict("records"):
        if row["status"] in ("failed", "unreadable"):
            sentences[row["trial_id"]] = (
                f"{row['label']}, student {row['student']}, seed {row['seed']} ({row['trial_id']}) {row['status']}: "
                f"{_shortened(row['reason'])}"
            )
        if row["teacher_status"] in ("failed", "unreadable"):
            sentences[row["teacher_id"]] = (
                f"teacher {row['teacher']} ({row['teacher_id']}) {row['teacher_status']}: "
                f"{_shortened(row['teacher_reason'])}"
            )
    return list(sentences.values())


def commonest(values: pd.Series[Any]) -> Any:
    """The value that occurs most, the first of them; None where there is none."""
    found = Counter(values.dropna().tolist()).most_common(1)
    return found[0][0] if found else None


def count(n: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {noun}{'s' * (n != 1)}"


def _shortened(reason: str, limit: int = 200) -> str:
    return reason if len(reason) <= limit else f"{reason[: limit - 3]}..."
