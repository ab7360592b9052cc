"""Computes the summary of results: statistics over seeds, and the comparison of every method with a baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kd_bench.report.crossed import Cell, difference_of_cells, estimate_cells, find_cells, without_gaps
from kd_bench.report.devices import leave_out_other_devices
from kd_bench.report.footnotes import footnotes, problems
from kd_bench.report.image_sets import OTHER_IMAGES, leave_out_other_images
from kd_bench.report.protocol import comparable, explain
from kd_bench.report.ranks import Ranking, ranking
from kd_bench.report.statistics import MeanAndStd, estimate, finished, most_frequent
from kd_bench.report.summary import ALONE, CONFIDENCE, PairTable, Summary, SummaryRow, baseline_name
from kd_bench.utils.errors import UserError
from kd_bench.utils.text import count

if TYPE_CHECKING:
    import pandas as pd


def summarise(frame: pd.DataFrame, baseline: str = "kd") -> Summary:
    """Returns the statistics over seeds of each pair.

    Trials that failed, are missing or are damaged are counted and never enter a mean. The same is true of trials of
    other images than most on the dataset, and of another protocol (any setting but the seed) than the row's others. A
    row whose epochs, augmentation or evaluated weights are not its pair's is shown, marked, and compared with nothing.
    Seconds of another device than that of most of the pair are in no mean.

    Args:
        frame: From ``read_results``.
        baseline: Label of the rows that the others are compared with.

    Raises:
        UserError: If two different trials of a pair have the same label, seed and teacher's seed.
    """
    frame = leave_out_other_devices(leave_out_other_images(frame))
    epochs = {str(dataset): most_frequent(finished(trials)["epochs"]) for dataset, trials in frame.groupby("dataset")}
    pairs = tuple(
        _pair_table(str(dataset), str(teacher), str(student), trials, baseline, epochs[str(dataset)])
        for (dataset, teacher, student), trials in frame.groupby(["dataset", "teacher", "student"], sort=False)
    )
    by_dataset: dict[str, list[PairTable]] = {}
    for pair in pairs:
        by_dataset.setdefault(pair.dataset, []).append(pair)
    rankings = tuple((dataset, ranks) for dataset, of in by_dataset.items() if (ranks := _ranking(of)) is not None)
    return Summary(
        pairs,
        baseline if baseline in set(frame["label"]) else None,
        tuple(footnotes(frame, pairs, baseline, rankings)),
        tuple(problems(frame)),
        rankings,
    )


def _pair_table(
    dataset: str, teacher: str, student: str, trials: pd.DataFrame, baseline: str, usual_epochs: int | None
) -> PairTable:
    trials, crossed = _with_cells(trials)
    by_label: dict[str, pd.DataFrame] = {}
    for label, repeated in trials.groupby("label", sort=False):
        by_label[str(label)] = of_label = repeated.drop_duplicates("trial_id")
        twice = of_label.loc[of_label["cell"].duplicated(), "seed"]
        if len(twice):
            raise UserError(
                f"{label!r} with student {student!r} stands for two different trials of seed {twice.iloc[0]}, "
                "which one table cannot show; make two recipes or give them two labels"
            )
    # the protocol of the pair is the baseline's; if no trial of the baseline is done, it is the most frequent one
    protocol = (_protocol(by_label[baseline]) if baseline in by_label else None) or _protocol(trials)
    by_label = {label: _mark_other_protocols(of_label, protocol) for label, of_label in by_label.items()}
    compared = None
    if baseline in by_label:
        compared = _top1_by_cell(by_label[baseline]) if _protocol(by_label[baseline]) == protocol else {}
    rows = [
        _student_row(label, of_label, baseline, compared, protocol, usual_epochs, crossed)
        for label, of_label in by_label.items()
    ]
    rows.sort(key=lambda row: row.kind != "student")  # stable, so the recipe's order stays
    if teacher:
        rows.insert(0, _teacher_row(teacher, trials, crossed))
    return PairTable(dataset, teacher, student, tuple(rows), crossed)


def _with_cells(trials: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Returns a pair's trials with a column ``cell``, and whether its students are crossed with teachers."""
    teachers = trials["teacher_seed"].astype(object).where(trials["teacher_seed"].notna(), None)
    cells, crossed = find_cells(zip(trials["label"], teachers.tolist(), trials["seed"].tolist(), strict=True))
    trials = trials.copy()
    trials["cell"] = cells
    return trials, crossed


def _protocol(trials: pd.DataFrame) -> str | None:
    """The most frequent protocol of the finished trials; None if there are none."""
    protocol = most_frequent(finished(trials)["protocol"])
    return None if protocol is None else str(protocol)


def _mark_other_protocols(trials: pd.DataFrame, pair_protocol: str | None) -> pd.DataFrame:
    """Sets the status "other" for finished trials of another protocol than the row's.

    The row's protocol is the pair's if any of its trials has that, otherwise the most frequent one of the row.
    """
    done = trials["status"] == "done"
    protocol = pair_protocol if pair_protocol in set(trials.loc[done, "protocol"]) else _protocol(trials)
    return trials.assign(status=trials["status"].mask(done & (trials["protocol"] != protocol), "other"))


def _student_row(
    label: str,
    trials: pd.DataFrame,
    baseline: str,
    compared: dict[Cell, float] | None,
    pair_protocol: str | None,
    usual_epochs: int | None,
    crossed: bool,
) -> SummaryRow:
    """The row of a method's trials, or of the student alone.

    Args:
        label, baseline: Labels of the row and of the baseline.
        trials: Its trials, one a cell.
        compared: Accuracy of the baseline by cell; None if the pair does not plan the baseline.
        pair_protocol, usual_epochs: Protocol of the pair and most frequent number of epochs on the dataset; None if
            nothing is done.
        crossed: Whether the pair's students are crossed with teachers.
    """
    done = finished(trials)
    protocol = _protocol(trials)
    fits = protocol is None or pair_protocol is None or comparable(protocol, pair_protocol)
    notes = []
    if protocol is not None:
        others = trials.loc[trials["status"] == "other", "protocol"]
        notes = [f"left out: {explain(other, protocol)}" for other in dict.fromkeys(others)]
    epochs = _epochs(done["epochs"])
    if protocol is not None and pair_protocol is not None and protocol != pair_protocol:
        remark = "trained otherwise" if fits else "another protocol, compared with nothing"
        notes.append(f"{remark}: {explain(protocol, pair_protocol)}")
    elif epochs and epochs != (usual_epochs,):
        notes.append(f"{' and '.join(map(str, epochs))} epochs")
    by_cell = _top1_by_cell(trials)
    cells = without_gaps(by_cell)
    top1 = _estimate(done["cell"], done["top1_last"])
    if top1 and len(cells) < len(done):
        notes.append(f"mean over {top1.crossing.text if top1.crossing else count(top1.n, 'seed')}")
    done = done[done["cell"].map(lambda cell: cell in cells).astype(bool)]
    difference = None
    differences: tuple[float, ...] = ()
    if compared is not None and label != baseline and fits:
        difference, differences = difference_of_cells(by_cell, compared, CONFIDENCE)
        if difference is None and by_cell:
            name = baseline_name(baseline)
            notes.append(f"no seed in common with {name}" if compared else f"{name} has no result yet")
        elif difference is not None:
            seeds = difference.crossing.seeds if difference.crossing and not (top1 and top1.crossing) else difference.n
            if seeds != len(done):
                notes.append(f"difference over {difference.over}")
    memory = done["peak_memory_bytes"].dropna()
    return SummaryRow(
        kind="student" if trials["method"].iloc[0] == ALONE else "method",
        label=label,
        top1=top1,
        best=_estimate(done["cell"], done["top1_best"]),
        difference=difference,
        seconds=_mean(done["seconds_per_epoch"]),
        epochs=epochs,
        method=str(trials["method"].iloc[0]),
        comparable=fits,
        differences=differences,
        trials=tuple(done["trial_id"].tolist()),
        memory=int(memory.max()) if len(memory) else None,
        gap=_estimate(done["cell"], done["top1_best"] - done["top1_last"]),
        held_out=_estimate(done["cell"], done["val_top1_last"]),
        selected=_estimate(done["cell"], done["top1_val_best"]),
        layout=_layout(top1, crossed),
        cells=tuple(done["cell"]),
        teacher_seeds=tuple(sorted(map(int, done["teacher_seed"].dropna().unique()))),
        **_counts(trials["status"], notes),
    )


def _teacher_row(name: str, trials: pd.DataFrame, crossed: bool) -> SummaryRow:
    """The row of a pair's teachers: one teacher if all seeds share it, otherwise one per seed."""
    # the student alone may know less of a teacher without a trial of its own than the trials that it taught
    known_first = trials.sort_values("teacher_top1", na_position="last", kind="stable")
    teachers = known_first.drop_duplicates("teacher_id")
    if teachers["teacher_id"].notna().any():
        teachers = teachers[teachers["teacher_id"].notna()]
    measured = teachers["teacher_top1"].notna()
    done = teachers[measured]
    return SummaryRow(
        kind="teacher",
        label=name,
        top1=estimate(done["teacher_top1"].tolist()),
        best=estimate(done["teacher_top1_best"].dropna().tolist()),
        difference=None,
        seconds=_mean(done["teacher_seconds_per_epoch"]),
        epochs=_epochs(done["teacher_epochs"]),
        layout=f"{len(done)} x –" if crossed else "",
        **_counts(teachers["teacher_status"].fillna("missing").mask(measured, "done"), []),
    )


def _mean(values: pd.Series[float]) -> float | None:
    values = values.dropna()
    return float(values.mean()) if len(values) else None


def _epochs(values: pd.Series[int]) -> tuple[int, ...]:
    return tuple(sorted({int(epochs) for epochs in values.dropna()}))


def _counts(statuses: Iterable[str], notes: Sequence[str]) -> dict[str, Any]:
    """The numbers of a row's trials, and its note, which begins with the trials that are not done."""
    counts = Counter(statuses)
    names = {"failed": "failed", "damaged": "damaged", "missing": "missing", "other": "of another protocol",
             OTHER_IMAGES: "of other images"}  # fmt: skip
    lacking = [f"{counts[status]} {name}" for status, name in names.items() if counts[status]]
    if lacking:
        notes = [f"{counts['done']} of {counts.total()} ({', '.join(lacking)})", *notes]
    by_status = {status: counts[status] for status in ("done", *names)}
    return {"planned": counts.total(), **by_status, "note": "; ".join(notes)}


def _ranking(pairs: Sequence[PairTable]) -> Ranking | None:
    """Ranks of the methods that all pairs plan and compare, over the pairs in which all of them are complete.

    Rows that are compared with nothing have no rank, and take none from the others.
    """
    planned = [{row.label for row in pair.rows if row.kind == "method" and row.comparable} for pair in pairs]
    labels = set.intersection(*planned)
    blocks = [
        {row.label: row.top1.mean for row in pair.rows if row.label in labels and row.ranked and row.top1}
        for pair in pairs
    ]
    blocks = [block for block in blocks if len(block) == len(labels)]
    return ranking(blocks) if len(labels) > 1 and len(blocks) > 1 else None


def _top1_by_cell(trials: pd.DataFrame) -> dict[Cell, float]:
    """Last-epoch accuracy of the finished trials by cell."""
    done = finished(trials)
    return dict(zip(done["cell"], done["top1_last"].tolist(), strict=True))


def _estimate(cells: Iterable[Cell], values: pd.Series[float]) -> MeanAndStd | None:
    """Mean and standard deviation of the values that are there, of one trial a cell."""
    present = {cell: value for cell, value in zip(cells, values.tolist(), strict=True) if not math.isnan(value)}
    return estimate_cells(present)


def _layout(top1: MeanAndStd | None, crossed: bool) -> str:
    """What the trials behind a mean are, if the pair's students are crossed with teachers."""
    if top1 is None or not crossed:
        return ""
    crossing = top1.crossing
    return f"{crossing.teachers} x {crossing.seeds}" if crossing else f"– x {top1.n}"
