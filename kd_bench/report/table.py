"""The table a paper would print: per pair, the teacher, the student alone, then every method against a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kd_bench.errors import UserError
from kd_bench.report.statistics import Difference, Estimate, estimate, paired_difference

if TYPE_CHECKING:
    import pandas as pd

#: Coverage of the intervals of differences.
CONFIDENCE = 0.95

#: Trials that trained without a teacher; the student alone.
ALONE = "none"


@dataclass(frozen=True)
class Published:
    """A published accuracy beside a line, in percent. It enters no statistic of the line.

    Attributes:
        top1: The number.
        std: Its published spread; None where none is published.
        source: Key of its source.
        mark: Letter that stands for the source in this table.
        difference: What was measured minus what is published, in percentage points; None where nothing is measured yet.
        inside: Whether it lies in the interval of the measured mean; None where that has no interval.
    """

    top1: float
    std: float | None
    source: str
    mark: str
    difference: float | None
    inside: bool | None


@dataclass(frozen=True)
class Row:
    """One line of a pair's table. Accuracies are top-1 in percent, differences in percentage points.

    Attributes:
        kind: What the line is of.
        label: The recipe's label of a student's line; the network's name of a teacher's.
        top1: Accuracy of the last epoch.
        best: Accuracy of the best epoch, which the test set itself selected.
        difference: ``top1`` minus the baseline's; None for the teacher, the baseline and where no seed is common.
        seconds: Mean seconds that training costs an epoch when run alone.
        epochs: The different lengths of the trials that are done.
        planned, done, failed, unreadable, missing: Numbers of trials.
        note: What a reader must know of this line before quoting it; empty where there is nothing.
        published: What is published of it under the same protocol; None where nothing is.
    """

    kind: Literal["teacher", "student", "method"]
    label: str
    top1: Estimate | None
    best: Estimate | None
    difference: Difference | None
    seconds: float | None
    epochs: tuple[int, ...]
    planned: int
    done: int
    failed: int
    unreadable: int
    missing: int
    note: str
    published: Published | None = None

    @property
    def complete(self) -> bool:
        """Whether every planned trial is done."""
        return self.done == self.planned


@dataclass(frozen=True)
class PairTable:
    """The lines of one pair, teacher first. ``teacher`` is empty where the recipe has none."""

    dataset: str
    teacher: str
    student: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Summary:
    """Everything a rendered table says.

    Attributes:
        pairs: In the recipe's order.
        baseline: Label that differences are taken to; None where no pair plans it.
        footnotes: Sentences that define the columns and name what is incomplete.
        problems: A sentence for each trial that failed or cannot be read.
    """

    pairs: tuple[PairTable, ...]
    baseline: str | None
    footnotes: tuple[str, ...]
    problems: tuple[str, ...]

    def headed(self, remark: str, note: str) -> Summary:
        """With a remark in the title of every pair, in whatever format, and a note above the others."""
        pairs = tuple(replace(pair, dataset=f"{pair.dataset}: {remark}") for pair in self.pairs)
        return replace(self, pairs=pairs, footnotes=(note, *self.footnotes))


def summarise(frame: pd.DataFrame, baseline: str = "kd") -> Summary:
    """Per-pair statistics over seeds.

    Trials that failed, are missing or cannot be read are counted and never enter a mean.

    Args:
        frame: From ``read_results``.
        baseline: Label of the rows that the others are compared with.

    Raises:
        UserError: Two different trials of a pair have the same label and seed, so that they cannot be told apart.
    """
    labels = list(dict.fromkeys(frame["label"]))
    known = baseline in labels
    usual = {
        str(dataset): _commonest(cells.loc[cells["status"] == "done", "epochs"])
        for dataset, cells in frame.groupby("dataset", sort=False)
    }
    pairs = tuple(
        _pair(str(dataset), str(teacher), str(student), cells, baseline, usual[str(dataset)])
        for (dataset, teacher, student), cells in frame.groupby(["dataset", "teacher", "student"], sort=False)
    )
    return Summary(
        pairs,
        baseline if known else None,
        tuple(_footnotes(frame, pairs, baseline, labels)),
        tuple(_problems(frame)),
    )


def _pair(
    dataset: str, teacher: str, student: str, cells: pd.DataFrame, baseline: str, usual_epochs: int | None
) -> PairTable:
    """The lines of the cells of one pair."""
    of_label: dict[str, pd.DataFrame] = {}
    for label, of_one in cells.groupby("label", sort=False):
        rows = of_one.drop_duplicates("trial_id")
        twice = rows.loc[rows["seed"].duplicated(), "seed"]
        if len(twice):
            raise UserError(
                f"{label!r} with student {student!r} stands for two different trials of seed {twice.iloc[0]}, "
                "which one table cannot tell apart; make them two recipes or give them two labels"
            )
        of_label[str(label)] = rows
    compared = _by_seed(of_label[baseline]) if baseline in of_label else None
    lines = [_student(label, rows, baseline, compared, usual_epochs) for label, rows in of_label.items()]
    lines.sort(key=lambda row: row.kind != "student")  # stable: the recipe's order stays
    if teacher:
        lines.insert(0, _teacher(teacher, cells))
    return PairTable(dataset, teacher, student, tuple(lines))


def _student(
    label: str, rows: pd.DataFrame, baseline: str, compared: dict[int, float] | None, usual_epochs: int | None
) -> Row:
    """The line of one method's trials, one a seed."""
    done = rows[rows["status"] == "done"]
    difference = None
    notes = []
    if compared is not None and label != baseline:
        difference = paired_difference(_by_seed(rows), compared, CONFIDENCE)
        if difference is None and len(done):
            notes.append(f"no seed in common with {baseline}")
        elif difference is not None and difference.n != len(done):
            notes.append(f"difference over {_count(difference.n, 'seed')}")
    epochs = tuple(sorted({int(n) for n in done["epochs"].dropna()}))
    if epochs and epochs != (usual_epochs,):
        notes.append(f"{' and '.join(map(str, epochs))} epochs")
    seconds = done["seconds_per_epoch"].dropna()
    return _row(
        "student" if rows["method"].iloc[0] == ALONE else "method",
        label,
        rows["status"],
        notes,
        top1=estimate(done["top1_last"].tolist()),
        best=estimate(done["top1_best"].tolist()),
        difference=difference,
        seconds=float(seconds.mean()) if len(seconds) else None,
        epochs=epochs,
    )


def _teacher(name: str, cells: pd.DataFrame) -> Row:
    """The line of a pair's teachers: one if all seeds share it, else one a seed."""
    # the student alone may know less of a teacher without a trial of its own than the trials it taught
    known_first = cells.sort_values("teacher_top1", na_position="last", kind="stable")
    each = known_first.drop_duplicates("teacher_id")
    if each["teacher_id"].notna().any():
        each = each[each["teacher_id"].notna()]
    has = each["teacher_top1"].notna()
    done = each[has]
    seconds = done["teacher_seconds_per_epoch"].dropna()
    return _row(
        "teacher",
        name,
        each["teacher_status"].fillna("missing").mask(has, "done"),
        [],
        top1=estimate(done["teacher_top1"].tolist()),
        best=estimate(done["teacher_top1_best"].dropna().tolist()),
        difference=None,
        seconds=float(seconds.mean()) if len(seconds) else None,
        epochs=tuple(sorted({int(n) for n in done["teacher_epochs"].dropna()})),
    )


def _row(
    kind: Literal["teacher", "student", "method"],
    label: str,
    statuses: Iterable[str],
    notes: list[str],
    *,
    top1: Estimate | None,
    best: Estimate | None,
    difference: Difference | None,
    seconds: float | None,
    epochs: tuple[int, ...],
) -> Row:
    """Adds the counts, and what they oblige to say."""
    counts = Counter(statuses)
    planned = counts.total()
    lacking = [f"{counts[status]} {status}" for status in ("failed", "unreadable", "missing") if counts[status]]
    if lacking:
        notes = [f"{counts['done']} of {planned} ({', '.join(lacking)})", *notes]
    return Row(
        kind,
        label,
        top1,
        best,
        difference,
        seconds,
        epochs,
        planned,
        counts["done"],
        counts["failed"],
        counts["unreadable"],
        counts["missing"],
        "; ".join(notes),
    )


def _footnotes(frame: pd.DataFrame, pairs: tuple[PairTable, ...], baseline: str, labels: list[str]) -> list[str]:
    """What the columns mean, and over what they are taken."""
    if not pairs:
        return ["No trials are planned."]
    notes = []
    trials = Counter(frame.drop_duplicates("trial_id")["status"])
    if trials["done"] < trials.total():
        lacking = ", ".join(f"{trials[s]} {s}" for s in ("failed", "unreadable", "missing") if trials[s])
        notes.append(f"Incomplete: {trials['done']} of {_count(trials.total(), 'planned trial')} done ({lacking}).")
    notes.append(
        "Top-1: accuracy on the test set after the last epoch, in percent; mean ± sample standard deviation (ddof = 1) "
        "over n trials, one a seed (of the teacher: over n teachers); (2/3) stands for 2 of 3 planned trials."
    )
    if baseline in labels:
        percent = round(100 * CONFIDENCE)
        sizes = sorted({row.difference.n for pair in pairs for row in pair.rows if row.difference})
        if not sizes:
            over = "the seeds that both have"
        elif len(sizes) == 1:
            over = f"the {_count(sizes[0], 'seed')} that both have"
        else:
            over = f"the {sizes[0]} to {sizes[-1]} seeds that both have"
        notes.append(
            f"Difference: method minus {baseline} in percentage points, paired by seed: mean over {over}, {percent} % "
            "interval of the paired t distribution (none for a single seed), not corrected for the number of methods."
        )
    else:
        notes.append(f"No differences: the recipe plans no {baseline!r} to compare with (it has {', '.join(labels)}).")
    notes.append("Best epoch: selected by its accuracy on the test set itself, therefore optimistic; mean ± std.")
    notes.append(
        "Seconds an epoch: mean cost of training when run alone: the trial's own steps plus the shared data and "
        "teacher pass."
    )
    for dataset, cells in frame.groupby("dataset", sort=False):
        facts = [f"Dataset: {dataset}"]
        usual = _commonest(cells.loc[cells["status"] == "done", "epochs"])
        if usual:
            facts.append(f"{_count(usual, 'epoch')} a trial")
        taught = {n for p in pairs if p.dataset == dataset for r in p.rows if r.kind == "teacher" for n in r.epochs}
        if taught:
            facts.append(f"teachers {' or '.join(str(epochs) if epochs else 'given' for epochs in sorted(taught))}")
        notes.append(f"{', '.join(facts)}.")
    return notes


def _problems(frame: pd.DataFrame) -> list[str]:
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


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Last-epoch accuracy of each seed that is done."""
    done = rows[rows["status"] == "done"]
    return dict(zip(done["seed"].tolist(), done["top1_last"].tolist(), strict=True))


def _commonest(counts: pd.Series[int]) -> int | None:
    found = Counter(counts.dropna().tolist()).most_common(1)
    return found[0][0] if found else None


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _shortened(reason: str, limit: int = 200) -> str:
    return reason if len(reason) <= limit else f"{reason[: limit - 3]}..."
