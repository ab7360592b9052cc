"""The sentences below a table: what its columns mean, what is incomplete, and why trials failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kd_bench.report.conclusion import conclusions
from kd_bench.report.cost_notes import cost_notes
from kd_bench.report.crossed_notes import CROSSED_DIFFERENCE, crossed_notes
from kd_bench.report.devices import device_notes
from kd_bench.report.image_sets import OTHER_IMAGES, image_notes, short, usual_images
from kd_bench.report.ranks import Ranking
from kd_bench.report.significance import DRAWS, EXACT
from kd_bench.report.statistics import finished, most_frequent
from kd_bench.report.summary import CONFIDENCE, PairTable, baseline_name
from kd_bench.utils.text import count

if TYPE_CHECKING:
    import pandas as pd

#: First words of the notes on columns that only the long layouts have.
LONG_ONLY = ("Difference:", "No differences:", "P-values", "Best epoch:", "Seconds an epoch:", "Other devices",
             "Minus published:")  # fmt: skip

#: First words of the notes on top-1, which a table of other columns does not have.
TOP1_ONLY = ("What ", "Top-1:", "Average rank")

#: First words of the notes on published values, which no table of ``--columns`` has.
PUBLISHED_ONLY = ("Published", "Epoch not stated:", "No comparison")

_TOP1 = (
    "Top-1: accuracy on the test set after the last epoch, in percent; mean ± sample standard deviation (ddof = 1) "
    "over n trials, one per seed (of the teacher: over n teachers); (2/3) stands for 2 of 3 planned trials."
)
#: What ``evaluated`` in ``result.json`` says of trials without an average of the weights, and words for each value.
_LAST = "last"
_WEIGHTS = {_LAST: "the last ones", "average over steps": "their average over steps",
            "average over epochs": "their average over epochs"}  # fmt: skip

_BEST = "Best epoch: selected by its accuracy on the test set itself, therefore optimistic; mean ± std."
_SECONDS = (
    "Seconds an epoch: mean cost of training when run alone: the trial's own steps plus the shared data and teacher "
    "pass."
)


def footnotes(
    frame: pd.DataFrame, pairs: Sequence[PairTable], baseline: str, rankings: Sequence[tuple[str, Ranking]]
) -> Iterator[str]:
    """Yields the notes of a table: what is incomplete, the meaning of each column, the ranks, facts on each dataset.

    The arguments are those of ``summarise``, with the tables of the pairs and the ranks of the methods by dataset.
    """
    if not pairs:
        yield "No trials are planned."
        return
    trials = Counter(frame.drop_duplicates("trial_id")["status"])
    if trials["done"] < trials.total():
        names = {"failed": "failed", "damaged": "damaged", "missing": "missing", OTHER_IMAGES: "of other images"}
        lacking = ", ".join(f"{trials[status]} {name}" for status, name in names.items() if trials[status])
        yield f"Incomplete: {trials['done']} of {count(trials.total(), 'planned trial')} done ({lacking})."
    left_out = sum(row.other for pair in pairs for row in pair.rows)
    if left_out:
        yield f"Left out of every mean: {count(left_out, 'trial')} of another protocol than the row's others."
    yield from image_notes(frame)
    labels = list(dict.fromkeys(frame["label"]))
    if baseline in labels:
        yield from conclusions(pairs, baseline_name(baseline))
    yield _TOP1
    yield from _evaluated_weights(frame)
    yield from crossed_notes(pairs)
    if baseline in labels:
        yield from _differences(pairs, baseline_name(baseline))
    else:
        rows = f"{', '.join(map(repr, labels[:6]))}{', ...' * (len(labels) > 6)}"
        yield f"No differences: there is no row {baseline!r} to compare with; the rows are {rows}."
    yield from (_BEST, _SECONDS, *device_notes(frame), *cost_notes(frame))
    for dataset, ranking in rankings:
        yield _ranks(dataset if len(rankings) > 1 else "", ranking)
    for name, of_dataset in frame.groupby("dataset", sort=False):
        yield _dataset(str(name), of_dataset, pairs)


def _evaluated_weights(frame: pd.DataFrame) -> Iterator[str]:
    """Which weights were tested, if some rows' are an average."""
    labels: dict[str, dict[str, None]] = {}
    done = finished(frame)
    for label, evaluated in zip(done["label"], done["evaluated"].fillna(_LAST), strict=True):
        labels.setdefault(evaluated, {})[label] = None
    if set(labels) - {_LAST}:
        kinds = "; ".join(f"{_WEIGHTS.get(kind, kind)} ({', '.join(of_kind)})" for kind, of_kind in labels.items())
        yield f"Evaluated weights: {kinds}."


def _differences(pairs: Sequence[PairTable], baseline: str) -> Iterator[str]:
    """The meaning of the differences, and of their p-values if any difference has two seeds."""
    if any(pair.crossed for pair in pairs):
        yield CROSSED_DIFFERENCE.format(baseline=baseline, confidence=round(100 * CONFIDENCE))
    if all(pair.crossed for pair in pairs):
        return
    sizes = sorted({row.difference.n for pair in pairs if not pair.crossed for row in pair.rows if row.difference})
    if not sizes:
        over = "the seeds"
    elif len(sizes) == 1:
        over = f"the {count(sizes[0], 'seed')}"
    else:
        over = f"the {sizes[0]} to {sizes[-1]} seeds"
    yield (
        f"Difference: method minus {baseline} in percentage points, paired by seed: mean over {over} that both have, "
        f"{round(100 * CONFIDENCE)} % interval of the paired t distribution (none for a single seed), not corrected "
        "for the number of methods."
    )
    if sizes and sizes[-1] > 1:
        most = sizes[-1]
        exact, least = ("exact ", 2 / 2**most) if most <= EXACT else ("", 1 / (DRAWS + 1))
        drawn = "" if exact else f" in {DRAWS:,} random ways"
        yield (
            f"P-values, where shown: two-sided; of the paired t test, and of the {exact}test that flips the signs of "
            f"the differences{drawn} (for n = {most} never below {least:.2g}); in brackets after Holm's correction for "
            "the methods of the pair."
        )


def _ranks(dataset: str, ranking: Ranking) -> str:
    """The average ranks on a dataset (named if not empty), and the conclusion that they allow."""
    ranks = ", ".join(f"{label} {value:.2f}" for label, value in ranking.average.items())
    test = "" if ranking.p is None else f"; Friedman's test that all rank alike: p = {ranking.p:.3g}"
    critical = (
        "so no two methods are called different"
        if ranking.critical is None
        else f"two differ at 5 % (Nemenyi) from a difference of {ranking.critical:.2f} on"
    )
    return (
        f"Average rank{f' on {dataset}' if dataset else ''} over the {count(ranking.pairs, 'pair')} in which "
        f"these methods are all complete, 1 the best: {ranks}{test}; {critical}. Pairs that share a network are not "
        "independent."
    )


def _dataset(dataset: str, trials: pd.DataFrame, pairs: Sequence[PairTable]) -> str:
    """The numbers of epochs of the trials and teachers on a dataset, and the digest of its images if it is known."""
    facts = [f"Dataset: {dataset}"]
    epochs = most_frequent(trials.loc[trials["status"] == "done", "epochs"])
    if epochs:
        facts.append(f"{count(epochs, 'epoch')} a trial")
    teachers = [row for pair in pairs if pair.dataset == dataset for row in pair.rows if row.kind == "teacher"]
    lengths = sorted({epochs for row in teachers for epochs in row.epochs})
    if lengths:
        texts = [count(epochs, "epoch") if epochs else "given weights" for epochs in lengths]
        facts.append(f"teachers: {' or '.join(texts)}")
    if images := usual_images(trials):
        facts.append(f"digest of the images {' or '.join(map(short, images.values()))}")
    return f"{', '.join(facts)}."


def problems(frame: pd.DataFrame) -> list[str]:
    """Returns a sentence for each trial, and each teacher's own trial, that failed or is damaged."""
    sentences: dict[str, str] = {}
    texts = ["label", "teacher", "student", "trial_id", "teacher_id", "status", "reason", "teacher_status",
             "teacher_reason"]  # fmt: skip
    for row in frame[[*texts, "seed"]].fillna(dict.fromkeys(texts, "")).to_dict("records"):
        trial = f"{row['label']}, student {row['student']}, seed {row['seed']} ({row['trial_id']})"
        teacher = f"teacher {row['teacher']} ({row['teacher_id']})"
        for key, name, prefix in (("trial_id", trial, ""), ("teacher_id", teacher, "teacher_")):
            status, reason = row[f"{prefix}status"], row[f"{prefix}reason"]
            if status in ("failed", "damaged"):
                sentences[row[key]] = f"{name} {status}: {reason if len(reason) <= 200 else f'{reason[:197]}...'}"
    return list(sentences.values())
