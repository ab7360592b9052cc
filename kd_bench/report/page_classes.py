"""What the page shows of classes: accuracies by class, changes against the baseline, and confusion matrices."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kd_bench.report import class_plots
from kd_bench.report.crossed import Cell, pair_cells
from kd_bench.report.summary import PairTable, SummaryRow
from kd_bench.report.trial_files import TrialDetails
from kd_bench.utils.text import count

#: Number of confusions that a matrix's list has.
_CONFUSIONS = 10


@dataclass(frozen=True)
class ClassTable:
    """Top-1 by class of the rows of a pair, in percent.

    Attributes:
        names: Names of the classes.
        images: Number of test images of each class; empty if that was not recorded.
        rows: The rows that are shown.
        top1: For each class the rows' means over trials; None for a class without images, or of which a row has none.
    """

    names: tuple[str, ...]
    images: tuple[int, ...]
    rows: tuple[SummaryRow, ...]
    top1: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a row, summed over its trials.

    Attributes:
        row: The row.
        trials: A text with the number of trials.
        svg: The plot; None for more than 200 classes.
        most: True class, predicted class, and percent of the true class's images, of the most frequent confusions.
    """

    row: SummaryRow
    trials: str
    svg: Markup | None
    most: tuple[tuple[str, str, float], ...]


def names_of(details: Sequence[TrialDetails], classes: int) -> tuple[str, ...]:
    """Returns the names of the classes that the trials recorded, otherwise ``class 0``, ``class 1``, and so on."""
    named = (trial.class_names for trial in details if len(trial.class_names) == classes)
    return next(named, tuple(f"class {index}" for index in range(classes)))


def class_table(rows: Sequence[tuple[SummaryRow, Sequence[TrialDetails]]]) -> ClassTable | None:
    """Returns the table of a pair from the trials behind each row; None if no trial recorded accuracies by class.

    Rows whose trials have another number of classes than the others are left out.
    """
    recorded = [(row, [trial for trial in trials if trial.classes]) for row, trials in rows]
    sizes = Counter(len(trial.classes) for _, trials in recorded for trial in trials)
    if not sizes:
        return None
    classes = sizes.most_common(1)[0][0]
    shown = [(row, trials) for row, trials in recorded if {len(trial.classes) for trial in trials} == {classes}]
    columns = [[_mean([trial.classes[index] for trial in trials]) for index in range(classes)] for _, trials in shown]
    details = [trial for _, trials in shown for trial in trials]
    confusion = next((trial.confusion for trial in details if trial.confusion), ())
    return ClassTable(
        names_of(details, classes),
        tuple(sum(row.values()) for row in confusion),
        tuple(row for row, _ in shown),
        tuple(zip(*columns, strict=True)),
    )


def confusions(title: str, rows: Sequence[tuple[SummaryRow, Sequence[TrialDetails]]]) -> Iterator[Confusion]:
    """Yields the confusion matrix of each row whose trials recorded one."""
    for row, trials in rows:
        recorded = [trial for trial in trials if trial.confusion]
        if not recorded or len({len(trial.confusion) for trial in recorded}) > 1:
            continue
        total: list[Mapping[int, int]] = [
            sum(map(Counter, rows), Counter()) for rows in zip(*(trial.confusion for trial in recorded), strict=True)
        ]
        names = names_of(recorded, len(total))
        shares = sorted(
            (-100 * number / sum(counts.values()), true, predicted)
            for true, counts in enumerate(total)
            for predicted, number in counts.items()
            if predicted != true
        )
        most = tuple((names[true], names[predicted], -share) for share, true, predicted in shares[:_CONFUSIONS])
        plot = None
        if len(total) <= class_plots.LARGEST_MATRIX:
            plot = class_plots.matrix(f"{row.name}, {title}", total, names)
        yield Confusion(row, count(len(recorded), "trial"), plot, most)


def changes(
    pair: PairTable, baseline: str | None, trials: Mapping[str, Mapping[Cell, TrialDetails]]
) -> Iterator[tuple[SummaryRow, list[float], tuple[str, ...]]]:
    """Yields each method's changes by class against the baseline, with the names of the classes.

    Classes without test images are left out. A change is the mean over the seeds, with several teachers over the pairs
    of a teacher's seed and a student's, of which both have accuracies.

    Args:
        pair: The pair.
        baseline: Label of the baseline.
        trials: The trials of each label by cell.
    """
    rows = {row.label: row for row in pair.rows if row.kind == "method" and row.comparable}
    compared = trials.get(baseline or "", {}) if baseline in rows else {}
    for label, row in rows.items():
        pairs = [
            (cell, baseline_cell)
            for cell, baseline_cell in pair_cells(trials.get(label, {}), compared).values()
            if label != baseline and 0 < len(cell.classes) == len(baseline_cell.classes)
        ]
        if not pairs:
            continue
        names = names_of([trial for trial, _ in pairs], len(pairs[0][0].classes))
        points = {}
        for index, name in enumerate(names):
            values = [(cell.classes[index], baseline_cell.classes[index]) for cell, baseline_cell in pairs]
            points[index, name] = [
                value - of_baseline for value, of_baseline in values if value is not None and of_baseline is not None
            ]
        means = {key: statistics.fmean(values) for key, values in points.items() if values}
        if means:
            yield row, list(means.values()), tuple(name for _, name in means)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None
