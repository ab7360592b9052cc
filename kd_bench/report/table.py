"""The table a paper would print: per pair, the teacher, the student alone, then every method against a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kd_bench.report.footnotes import commonest, count, footnotes, problems
from kd_bench.report.protocol import comparable, explain
from kd_bench.report.ranks import Ranking, ranking
from kd_bench.report.significance import Significance, correct, significance
from kd_bench.report.statistics import Difference, MeanAndStd, estimate, paired_difference
from kd_bench.utils.errors import UserError

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
        method: The method's name; empty for a teacher.
        family: What it distils, "features" or "logits"; empty where that is not known.
        other: Number of trials that are done and left out, as they were trained otherwise than the line's others.
        comparable: Whether data, augmentation, length and choice of weights are those of its pair, so that it may be
            compared with others.
        significance: What ``difference`` proves; None where there is no difference.
        trials: Identities of the trials that its means are of; of a teacher, empty.
        memory: Largest memory in bytes that training took on its device; None where it was not recorded.
    """

    kind: Literal["teacher", "student", "method"]
    label: str
    top1: MeanAndStd | None
    best: MeanAndStd | None
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
    method: str = ""
    family: str = ""
    other: int = 0
    comparable: bool = True
    significance: Significance | None = None
    trials: tuple[str, ...] = ()
    memory: int | None = None

    @property
    def ranked(self) -> bool:
        """Whether it may be called the best: a method, complete, by the protocol of its pair."""
        return self.kind == "method" and self.complete and self.comparable and self.top1 is not None

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
        rankings: Ranks of the methods over the pairs of a data set, by data set, where at least two are complete.
    """

    pairs: tuple[PairTable, ...]
    baseline: str | None
    footnotes: tuple[str, ...]
    problems: tuple[str, ...]
    rankings: tuple[tuple[str, Ranking], ...] = ()

    def headed(self, remark: str, note: str) -> Summary:
        """With a remark in the title of every pair, in whatever format, and a note above the others."""
        pairs = tuple(replace(pair, dataset=f"{pair.dataset}: {remark}") for pair in self.pairs)
        return replace(self, pairs=pairs, footnotes=(note, *self.footnotes))

    def in_families(self, families: Mapping[str, str]) -> Summary:
        """With the families of the methods, by the methods' names."""
        pairs = tuple(
            replace(pair, rows=tuple(replace(row, family=families.get(row.method, "")) for row in pair.rows))
            for pair in self.pairs
        )
        return replace(self, pairs=pairs)


def summarise(frame: pd.DataFrame, baseline: str = "kd") -> Summary:
    """Per-pair statistics over seeds.

    Trials that failed, are missing or cannot be read are counted and never enter a mean; nor do trials of another
    protocol (any setting but the seed) than the line's others. A line whose epochs, augmentation or choice of weights
    are not its pair's is shown, marked, and compared with nothing.

    Args:
        frame: From ``read_results``.
        baseline: Label of the rows that the others are compared with.

    Raises:
        UserError: Two different trials of a pair have the same label and seed, so that they cannot be told apart.
    """
    labels = list(dict.fromkeys(frame["label"]))
    known = baseline in labels
    usual = {
        str(dataset): commonest(cells.loc[cells["status"] == "done", "epochs"])
        for dataset, cells in frame.groupby("dataset", sort=False)
    }
    pairs = tuple(
        _pair(str(dataset), str(teacher), str(student), cells, baseline, usual[str(dataset)])
        for (dataset, teacher, student), cells in frame.groupby(["dataset", "teacher", "student"], sort=False)
    )
    rankings = tuple(
        (dataset, found)
        for dataset in dict.fromkeys(pair.dataset for pair in pairs)
        if (found := _ranking([pair for pair in pairs if pair.dataset == dataset])) is not None
    )
    return Summary(
        pairs,
        baseline if known else None,
        tuple(footnotes(frame, pairs, baseline, labels, rankings, CONFIDENCE)),
        tuple(problems(frame)),
        rankings,
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
    first = of_label.get(baseline)
    usual = (_usual(first) if first is not None else None) or _usual(cells)
    of_label = {label: _unmixed(rows, usual) for label, rows in of_label.items()}
    compared = of_label.get(baseline)
    if compared is not None and _usual(compared) != usual:
        compared = compared.iloc[:0]
    seeds = None if compared is None else _by_seed(compared)
    lines = [_student(label, rows, baseline, seeds, usual, usual_epochs) for label, rows in of_label.items()]
    corrected = iter(correct([row.significance for row in lines if row.kind == "method"]))
    lines = [replace(row, significance=next(corrected)) if row.kind == "method" else row for row in lines]
    lines.sort(key=lambda row: row.kind != "student")  # stable: the recipe's order stays
    if teacher:
        lines.insert(0, _teacher(teacher, cells))
    return PairTable(dataset, teacher, student, tuple(lines))


def _usual(rows: pd.DataFrame) -> str | None:
    """The protocol that most of the trials that are done have."""
    found = commonest(rows.loc[rows["status"] == "done", "protocol"])
    return None if found is None else str(found)


def _unmixed(rows: pd.DataFrame, usual: str | None) -> pd.DataFrame:
    """With the status "other" for trials of another protocol than the line's: its pair's if it has any of that."""
    done = rows["status"] == "done"
    own = usual if usual in set(rows.loc[done, "protocol"]) else _usual(rows)
    return rows.assign(status=rows["status"].mask(done & (rows["protocol"] != own), "other"))


def _student(
    label: str,
    rows: pd.DataFrame,
    baseline: str,
    compared: dict[int, float] | None,
    usual: str | None,
    usual_epochs: int | None,
) -> Row:
    """The line of one method's trials, one a seed."""
    done = rows[rows["status"] == "done"]
    own = _usual(rows)
    fits = own is None or usual is None or comparable(own, usual)
    notes = [f"left out: {explain(one, own)}" for one in _others(rows) if own is not None]
    epochs = tuple(sorted({int(n) for n in done["epochs"].dropna()}))
    difference = tested = None
    if own is not None and usual is not None and own != usual:
        remark = "trained otherwise" if fits else "another protocol, compared with nothing"
        notes.append(f"{remark}: {explain(own, usual)}")
    elif epochs and epochs != (usual_epochs,):
        notes.append(f"{' and '.join(map(str, epochs))} epochs")
    if compared is not None and label != baseline and fits:
        difference = paired_difference(_by_seed(rows), compared, CONFIDENCE)
        if difference is None and len(done):
            notes.append(f"no seed in common with {baseline}")
        elif difference is not None:
            values = _by_seed(rows)
            tested = significance([values[s] - compared[s] for s in sorted(values.keys() & compared)], CONFIDENCE)
            if difference.n != len(done):
                notes.append(f"difference over {count(difference.n, 'seed')}")
    seconds, memory = done["seconds_per_epoch"].dropna(), done["peak_memory_bytes"].dropna()
    row = _row(
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
    return replace(
        row,
        method=str(rows["method"].iloc[0]),
        comparable=fits,
        significance=tested,
        trials=tuple(done["trial_id"].tolist()),
        memory=int(memory.max()) if len(memory) else None,
    )


def _others(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows.loc[rows["status"] == "other", "protocol"]))


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
    top1: MeanAndStd | None,
    best: MeanAndStd | None,
    difference: Difference | None,
    seconds: float | None,
    epochs: tuple[int, ...],
) -> Row:
    """Adds the counts, and what they oblige to say."""
    counts = Counter(statuses)
    planned = counts.total()
    named = {"failed": "failed", "unreadable": "unreadable", "missing": "missing", "other": "of another protocol"}
    lacking = [f"{counts[status]} {words}" for status, words in named.items() if counts[status]]
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
        other=counts["other"],
    )


def _ranking(pairs: list[PairTable]) -> Ranking | None:
    """Ranks of the methods that all pairs plan, over the pairs in which all of those may be compared."""
    planned = [{row.label for row in pair.rows if row.kind == "method"} for pair in pairs]
    labels = set.intersection(*planned)
    blocks = [
        {row.label: row.top1.mean for row in pair.rows if row.label in labels and row.ranked and row.top1}
        for pair in pairs
    ]
    blocks = [block for block in blocks if len(block) == len(labels)]
    return ranking(blocks) if len(labels) > 1 and len(blocks) > 1 else None


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Last-epoch accuracy of each seed that is done."""
    done = rows[rows["status"] == "done"]
    return dict(zip(done["seed"].tolist(), done["top1_last"].tolist(), strict=True))
