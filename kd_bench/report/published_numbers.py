"""Compares measured numbers with published ones, for trials that were trained with the published settings.

The published numbers are in ``results/published/``: a table (CSV, one row for each number and source) and beside it a
file (YAML) with the protocol and hyperparameters behind the numbers, and their sources. A recipe names the file. A row
of its table has a published number beside it if all settings of its trials are those of the protocol. Otherwise a
footnote names the differences.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kd_bench.config.base import Settings
from kd_bench.config.load import find_published
from kd_bench.config.numbers import NonNegative, Positive
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.config.validate import parse
from kd_bench.config.yaml_reader import read_mapping
from kd_bench.report.protocol import IDENTITY, differences, first_few
from kd_bench.report.published_files import read_rows
from kd_bench.report.results_frame import teacher_name
from kd_bench.report.statistics import MeanAndStd, mean_interval
from kd_bench.report.summary import ALONE, CONFIDENCE, PairTable, Published, Summary, SummaryRow
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: The tables' method of networks that were trained as teachers.
TEACHER = "teacher"

#: Settings of a trial that a file of published numbers does not have.
_NOT_PUBLISHED = IDENTITY | {"schema"}

_REPORTS = {"last": "last epoch", "best": "best epoch", "unknown": "epoch not stated"}

_COLUMNS = ("dataset", "teacher", "student", "method", "top1", "std", "source")


class Publication(Settings):
    """A source of published numbers.

    Attributes:
        title: Title for people.
        reports: Epoch of the accuracies: the last, or the best on the test set.
        note: Further remarks.
    """

    title: str
    reports: Literal["last", "best", "unknown"]
    note: str = ""


class PublishedFile(Settings):
    """The file beside a table of published numbers.

    Attributes:
        numbers: File of the table, in the same folder.
        protocol: All settings of a trial. A setting that is not named here must not be set.
        prefix: Prefix of the networks' names, which the tables leave out.
        learning_rates: Learning rates of networks for which the protocol has another one.
        teacher_tolerance: Percentage points by which a given teacher may differ from the published one.
        methods: Hyperparameters behind the numbers, by method. Others are not compared.
        pairs: The same for one pair, ``teacher > student``, and method.
        sources: Sources in order of precedence.
    """

    numbers: str
    protocol: dict[str, Any]
    prefix: str = ""
    learning_rates: dict[str, Positive] = {}
    teacher_tolerance: NonNegative
    methods: dict[str, dict[str, Any]]
    pairs: dict[str, dict[str, dict[str, Any]]] = {}
    sources: dict[str, Publication]


class PublishedCell(NamedTuple):
    """The cell of a published number. ``teacher`` is empty for a student alone, ``student`` for a teacher."""

    dataset: str
    teacher: str
    student: str
    method: str


class PublishedNumber(NamedTuple):
    """A published accuracy in percent, its standard deviation if that is published, and the key of its source."""

    top1: float
    std: float | None
    source: str


@dataclass(frozen=True)
class PublishedNumbers:
    """The numbers of a file: name, file, and the numbers of each cell from all sources in order of precedence."""

    name: str
    file: PublishedFile
    cells: Mapping[PublishedCell, tuple[PublishedNumber, ...]]


def read(name: str, context: str) -> PublishedNumbers:
    """Reads the published numbers that a recipe names.

    Args:
        name: Name of a file in ``results/published/``, without its suffix, or the path of such a file.
        context: Where the name was written, for errors.

    Raises:
        UserError: If there is no such file, or the file or its table is damaged.
    """
    path = find_published(name, context)
    file = parse(PublishedFile, read_mapping(path, "file of published numbers"), str(path))
    order = list(file.sources)
    cells: dict[PublishedCell, dict[str, PublishedNumber]] = {}
    for line, row in read_rows(path.parent / file.numbers, _COLUMNS):
        top1 = _percentage(f"{line}: top1", row["top1"])
        std = _percentage(f"{line}: std", row["std"]) if row["std"] else None
        if row["source"] not in file.sources:
            raise unknown("source", row["source"], order, line)
        numbers = cells.setdefault(PublishedCell(row["dataset"], row["teacher"], row["student"], row["method"]), {})
        if row["source"] in numbers:
            raise UserError(f"{line}: repeats a number of an earlier line")
        numbers[row["source"]] = PublishedNumber(top1, std, row["source"])
    in_order = {
        cell: tuple(numbers[source] for source in order if source in numbers) for cell, numbers in cells.items()
    }
    return PublishedNumbers(path.stem, file, in_order)


def _percentage(context: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UserError(f"{context}: {text!r} is no percentage")
    return value


def compare(summary: Summary, planned: Sequence[PlannedTrial], numbers: PublishedNumbers) -> Summary:
    """Adds published numbers to the rows that were trained as published, and footnotes about them and the other rows.

    The measured numbers stay the same. ``planned`` has the trials of the summary.
    """
    cells: dict[tuple[str, str, str], dict[str, PlannedTrial]] = {}
    for cell in planned:
        pair_key = cell.dataset, teacher_name(cell), cell.student
        cells.setdefault(pair_key, {}).setdefault(cell.label, cell)
    comparison = _Comparison(numbers)
    pairs = []
    for pair in summary.pairs:
        by_label = cells[pair.dataset, pair.teacher, pair.student]
        first = next(iter(by_label.values()))
        rows = (comparison.compare(row, pair, by_label.get(row.label, first)) for row in pair.rows)
        pairs.append(replace(pair, rows=tuple(rows)))
    return replace(summary, pairs=tuple(pairs), footnotes=(*summary.footnotes, *comparison.footnotes()))


class _Comparison:
    """Compares rows with published numbers and collects the footnotes."""

    def __init__(self, numbers: PublishedNumbers) -> None:
        self.numbers = numbers
        self._marks: dict[str, str] = {}  # letter by source
        self._others: dict[str, list[str]] = {}  # numbers of other sources, by source
        self._refused: dict[str, list[str]] = {}  # labels that are not compared, by reason

    def compare(self, row: SummaryRow, pair: PairTable, cell: PlannedTrial) -> SummaryRow:
        """Returns the row with the number published for it, if there is one and the settings agree."""
        numbers = _find(row, cell, self.numbers)
        if not numbers:
            return row
        reasons = _reasons(row, pair, cell, self.numbers)
        if reasons:
            self._refused.setdefault(first_few(reasons), []).append(TEACHER if row.kind == TEACHER else row.label)
            return row
        shown, *others = numbers
        networks = pair.student if row.kind == "student" else f"{pair.teacher} → {pair.student}"
        name = row.label if row.kind == TEACHER else f"{row.label} of {networks}"
        for other in others:
            if other.top1 != shown.top1:
                self._others.setdefault(other.source, []).append(f"{name} {other.top1:.2f}")
        interval = mean_interval(row.top1, CONFIDENCE) if row.top1 else None
        published = Published(
            top1=shown.top1,
            std=shown.std,
            source=shown.source,
            mark=self._marks.setdefault(shown.source, string.ascii_letters[len(self._marks)]),
            difference=row.top1.mean - shown.top1 if row.top1 else None,
            inside=interval[0] <= shown.top1 <= interval[1] if interval else None,
        )
        return replace(row, published=published)

    def footnotes(self) -> Iterator[str]:
        """Yields sentences about the columns of published numbers, or about the reasons for their absence."""
        if self._marks:
            legend = (f"({mark}) {key}, {self._source(key)}" for key, mark in self._marks.items())
            yield f"Published, and not measured here: {'; '.join(legend)}."
            yield (
                "Minus published: measured mean of the last epoch minus the published value in percentage points; "
                f"inside or outside says where the published value lies, of the {round(100 * CONFIDENCE)} % interval "
                "of the measured mean (t distribution over trials, none for a single one). The published spread is "
                "mostly unknown."
            )
        for key, numbers in self._others.items():
            yield f"Published otherwise by {key}, {self._source(key)}: {'; '.join(dict.fromkeys(numbers))}."
        refused = list(self._refused.items())
        if refused and not self._marks:  # nothing is compared: name only the reason that most rows have
            refused = [max(refused, key=lambda item: len(item[1]))]
        for reason, labels in refused:
            of = f" of {', '.join(dict.fromkeys(labels))}" if self._marks else ""
            yield f"No comparison{of} with published numbers ({self.numbers.name}): {reason}."

    def _source(self, key: str) -> str:
        source = self.numbers.file.sources[key]
        return f"{source.title}, {_REPORTS[source.reports]}"


def _find(row: SummaryRow, cell: PlannedTrial, numbers: PublishedNumbers) -> tuple[PublishedNumber, ...]:
    """The numbers published for a row's dataset and networks, whatever the settings."""
    prefix, dataset = numbers.file.prefix, cell.trial.dataset.name
    teacher, student = (
        name.removeprefix(prefix) if name.startswith(prefix) else "" for name in (cell.teacher, cell.student)
    )
    keys = {
        TEACHER: [PublishedCell(dataset, teacher, "", TEACHER)],
        "student": [PublishedCell(dataset, "", student, ALONE), PublishedCell(dataset, student, "", TEACHER)],
        "method": [PublishedCell(dataset, teacher, student, cell.method)],
    }[row.kind]
    return next((numbers.cells[key] for key in keys if key in numbers.cells), ())


def _reasons(row: SummaryRow, pair: PairTable, cell: PlannedTrial, numbers: PublishedNumbers) -> list[str]:
    """Differences between the training of a row and the published one; empty if there are none."""
    if row.kind == TEACHER:
        return _teacher_differences(cell.taught_by, None, numbers)
    if not row.comparable:
        return ["results of another protocol than the recipe's"]
    reasons = _training_differences(cell.trial, numbers.file)
    if row.kind == "student":
        return reasons
    file = numbers.file
    networks = " > ".join(name.removeprefix(file.prefix) for name in (cell.teacher, cell.student))
    wanted = file.methods.get(cell.method, {}) | file.pairs.get(networks, {}).get(cell.method, {})
    ours = cell.trial.method.hyperparameters
    reasons += differences({key: ours.get(key) for key in wanted}, wanted)
    teacher = pair.first("teacher")
    top1 = teacher.top1 if teacher else None
    return list(dict.fromkeys(reasons + _teacher_differences(cell.taught_by, top1, numbers)))


def _training_differences(trial: Trial, file: PublishedFile) -> list[str]:
    settings = {key: value for key, value in trial.settings().items() if key not in _NOT_PUBLISHED}
    wanted = dict(file.protocol)
    rate = file.learning_rates.get(trial.model.removeprefix(file.prefix))
    if rate:
        wanted["optimizer"] = {**wanted["optimizer"], "lr": rate}
    return list(differences(settings, wanted))


def _teacher_differences(
    teacher: Trial | PretrainedTeacher | None, measured: MeanAndStd | None, numbers: PublishedNumbers
) -> list[str]:
    """The same for a teacher. ``measured`` is its accuracy, if that must be the published one's."""
    if teacher is None:
        return ["no teacher"]
    if isinstance(teacher, Trial):
        return [f"teacher's {difference}" for difference in _training_differences(teacher, numbers.file)]
    settings = teacher.settings()
    reasons = list(differences(settings["dataset"], numbers.file.protocol.get("dataset", {}), "teacher's dataset."))
    if "input" in settings:
        reasons.append("teacher with another input")
    name = teacher.model.removeprefix(numbers.file.prefix)
    published = numbers.cells.get(PublishedCell(teacher.dataset.name, name, "", TEACHER))
    if measured and published and abs(measured.mean - published[0].top1) > numbers.file.teacher_tolerance:
        reasons.append(
            f"a given teacher of {measured.mean:.2f} % where the published one has {published[0].top1:.2f} %"
        )
    return reasons
