"""Compares measured numbers with published ones, for trials that were trained with the published settings.

The published numbers are in ``results/published/``: a table (CSV, one row for each number and source) and beside it a
file (YAML) with the protocol and hyperparameters behind the numbers, and their sources. A recipe names one or more such
files. A row of its table has a published number beside it if all settings of its trials are those of the number's
protocol. Otherwise a footnote names the differences.

A published accuracy of the last epoch stands beside the measured one of the last epoch. One of the best epoch on the
test set stands beside the measured best epoch, in columns of its own. One whose epoch is not stated is shown without a
difference.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_bench.config.load import merge
from kd_bench.config.trial import MethodSettings, Trial
from kd_bench.report.protocol import IDENTITY, differences, first_few
from kd_bench.report.published_files import PublishedCell, PublishedNumber, PublishedNumbers, read
from kd_bench.report.results_frame import teacher_name
from kd_bench.report.statistics import MeanAndStd, mean_interval
from kd_bench.report.summary import ALONE, CONFIDENCE, PairTable, Published, Reports, Summary, SummaryRow

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

__all__ = ["PublishedCell", "PublishedNumber", "PublishedNumbers", "compare", "read", "training_differences"]

#: The tables' method of networks that were trained as teachers.
TEACHER = "teacher"

#: Settings of a trial that a file of published numbers does not have.
_NOT_PUBLISHED = IDENTITY | {"schema"}

#: The optimiser that is a method of distillation itself.
_DOT = "dot"

#: Keys of a published row that are not hyper-parameters.
_ROW_KEYS = ("method", "training")

#: Settings of a method besides its hyper-parameters, with the values that a published row has if it does not name them.
_METHOD_SETTINGS = {
    name: field.default
    for name, field in MethodSettings.model_fields.items()
    if name not in ("name", "hyperparameters", "source")
}

_REPORTS = {"last": "last epoch", "best": "best epoch", "unknown": "epoch not stated"}


class _Candidate(NamedTuple):
    """A number published for a row's networks and method, and why the row is not compared with it, if it is not."""

    numbers: PublishedNumbers
    cell: PublishedCell
    number: PublishedNumber
    reasons: Sequence[str]

    @property
    def reports(self) -> Reports:
        return self.numbers.reports(self.cell, self.number)

    @property
    def mark(self) -> _Mark:
        source = self.numbers.file.sources[self.number.source]
        return _Mark(self.number.source, source.title, self.reports, source.extra_layers)


class _Mark(NamedTuple):
    """What a letter of the table stands for: a source, and how it measured."""

    source: str
    title: str
    reports: Reports
    extra_layers: bool


def compare(summary: Summary, planned: Sequence[PlannedTrial], *numbers: PublishedNumbers) -> Summary:
    """Adds published numbers to the rows that were trained as published, and footnotes about them and the other rows.

    The measured numbers stay the same.

    Args:
        summary: The table.
        planned: The trials of the table.
        numbers: Files of published numbers in order of precedence.
    """
    cells: dict[tuple[str, str, str], list[PlannedTrial]] = {}
    for cell in planned:
        cells.setdefault((cell.dataset, teacher_name(cell), cell.student), []).append(cell)
    comparison = _Comparison(numbers)
    pairs = []
    for pair in summary.pairs:
        of_pair = cells[pair.dataset, pair.teacher, pair.student]
        rows = (comparison.compare(row, pair, _cell(row, of_pair)) for row in pair.rows)
        pairs.append(replace(pair, rows=tuple(rows)))
    return replace(summary, pairs=tuple(pairs), footnotes=(*summary.footnotes, *comparison.footnotes()))


def _cell(row: SummaryRow, cells: Sequence[PlannedTrial]) -> PlannedTrial:
    """A trial of the row: one behind its means if there are any, else the first planned one."""
    of_row = [cell for cell in cells if cell.label == row.label] or cells
    return next((cell for cell in of_row if cell.trial_id in row.trials), of_row[0])


@dataclass(frozen=True)
class _Refused:
    """Why rows are not compared with a file."""

    file: str
    reason: str


def _letter(number: int) -> str:
    """Returns the mark of a source by its number: a to z, A to Z, aa to zz, and so on."""
    letters = string.ascii_letters
    return letters[number % len(letters)] * (number // len(letters) + 1)


class _Comparison:
    """Compares rows with published numbers and collects the footnotes."""

    def __init__(self, numbers: Sequence[PublishedNumbers]) -> None:
        self.numbers = numbers
        self.teachers = _teachers(numbers)
        self._marks: dict[_Mark, str] = {}  # letter
        self._runs: dict[_Mark, set[int]] = {}
        self._others: dict[_Mark, list[str]] = {}  # numbers that are not shown in a column
        self._refused: dict[_Refused, list[str]] = {}  # labels that are not compared

    def compare(self, row: SummaryRow, pair: PairTable, cell: PlannedTrial) -> SummaryRow:
        """Returns the row with the numbers published for it, if there are any and the settings agree."""
        row_of_pair = _Row(row, pair, cell, self.teachers)
        candidates = [candidate for numbers in self.numbers for candidate in _candidates(row_of_pair, numbers)]
        agreeing = [candidate for candidate in candidates if not candidate.reasons]
        if not agreeing:
            if candidates:
                closest = min(candidates, key=lambda candidate: len(candidate.reasons))
                refused = _Refused(closest.numbers.name, first_few(closest.reasons))
                self._refused.setdefault(refused, []).append(TEACHER if row.kind == TEACHER else row.label)
            return row
        best = [candidate for candidate in agreeing if candidate.reports == "best"]
        other = [candidate for candidate in agreeing if candidate.reports != "best"]
        other.sort(key=lambda candidate: candidate.reports == "unknown")  # stable: the order of precedence stays
        networks = pair.student if row.kind == "student" else f"{pair.teacher} → {pair.student}"
        name = row.label if row.kind == TEACHER else f"{row.label} of {networks}"
        return replace(
            row,
            published=self._shown(other, row.top1, name),
            published_best=self._shown(best, row.best, name),
        )

    def _shown(self, candidates: Sequence[_Candidate], measured: MeanAndStd | None, name: str) -> Published | None:
        """The first number, compared with the measured one. The others are for the footnotes if they differ."""
        if not candidates:
            return None
        shown, *others = candidates
        for other in others:
            if other.number.top1 != shown.number.top1:
                self._others.setdefault(other.mark, []).append(f"{name} {other.number.top1:.2f}")
        number, mark = shown.number, shown.mark
        if number.runs:
            self._runs.setdefault(mark, set()).add(number.runs)
        stated = shown.reports != "unknown"
        interval = mean_interval(measured, CONFIDENCE) if measured and stated else None
        return Published(
            top1=number.top1,
            std=number.std,
            source=number.source,
            mark=self._marks.setdefault(mark, _letter(len(self._marks))),
            difference=measured.mean - number.top1 if measured and stated else None,
            inside=interval[0] <= number.top1 <= interval[1] if interval else None,
            reports=shown.reports,
            runs=number.runs,
        )

    def footnotes(self) -> Iterator[str]:
        """Yields sentences about the columns of published numbers, or about the reasons for their absence."""
        if self._marks:
            legend = (f"({letter}) {mark.source}, {self._source(mark)}" for mark, letter in self._marks.items())
            yield f"Published, and not measured here: {'; '.join(legend)}."
            yield (
                "Minus published: measured mean minus the published value of the same epoch, the last or the best, in "
                "percentage points; inside or outside says whether the published value lies in the "
                f"{round(100 * CONFIDENCE)} % interval of the measured mean (t distribution over trials, none for a "
                "single one). The published spread is mostly unknown."
            )
            yield from self._epochs()
        for mark, numbers in self._others.items():
            names = "; ".join(dict.fromkeys(numbers))
            yield f"Published otherwise by {mark.source}, {self._source(mark)}: {names}."
        refused = list(self._refused.items())
        if refused and not self._marks:  # nothing is compared: name only the reason that most rows have
            refused = [max(refused, key=lambda item: len(item[1]))]
        for reason, labels in refused:
            of = f" of {', '.join(dict.fromkeys(labels))}" if self._marks else ""
            yield f"No comparison{of} with published numbers ({reason.file}): {reason.reason}."

    def _epochs(self) -> Iterator[str]:
        """Sentences about the sources that do not report the last epoch."""
        sources: dict[Reports, list[str]] = {}
        for mark, letter in self._marks.items():
            sources.setdefault(mark.reports, []).append(f"{mark.source} ({letter})")
        if of_best := sources.get("best"):
            yield (
                "Published best epoch: these sources report the epoch that was best on the test set itself, which is "
                f"optimistic: {', '.join(of_best)}. Their numbers stand beside the measured best epoch, never beside "
                "the last."
            )
        if of_unknown := sources.get("unknown"):
            yield (
                "Epoch not stated: these sources do not say whether they report the last epoch or the one that was "
                f"best on the test set: {', '.join(of_unknown)}. So no difference to their numbers is computed."
            )

    def _source(self, mark: _Mark) -> str:
        runs = sorted(self._runs.get(mark, ()))
        facts = [mark.title, _REPORTS[mark.reports]]
        if runs:
            facts.append("one run" if runs == [1] else f"means of {' or '.join(map(str, runs))} runs")
        if mark.extra_layers:
            facts.append("students with extra layers")
        return ", ".join(facts)


@dataclass(frozen=True)
class _Row:
    """A row to be compared: its results, its pair, a trial, and the published accuracies of teachers."""

    row: SummaryRow
    pair: PairTable
    cell: PlannedTrial
    teachers: Mapping[tuple[str, str], float]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the trial that belong to a protocol."""
        return _settings(self.cell.trial)

    def published(self, numbers: PublishedNumbers, key: PublishedCell, number: PublishedNumber) -> dict[str, Any]:
        """Returns the settings behind a number, as a recipe's row has them; empty for networks trained alone."""
        prefix = numbers.file.prefix
        networks = " > ".join(name.removeprefix(prefix) for name in (self.cell.teacher, self.cell.student))
        return numbers.file.row(number.source, networks, key.method) if self.row.kind == "method" else {}

    def is_variant(self, published: Mapping[str, Any]) -> bool:
        """Whether a published row is of the same combination of a method with standardised logits, DOT and the like."""
        if self.row.kind != "method":
            return True
        method, optimizer = self.cell.trial.method, published.get("training", {}).get("optimizer") or {}
        if (optimizer.get("name") == _DOT) != (self.cell.trial.optimizer.name == _DOT):
            return False
        # a method may have a hyper-parameter of the same name instead of the setting
        settings = {name: method.hyperparameters.get(name, getattr(method, name)) for name in _METHOD_SETTINGS}
        return settings == {name: published.get(name, default) for name, default in _METHOD_SETTINGS.items()}

    @property
    def teacher_top1(self) -> MeanAndStd | None:
        """The measured accuracy of the teacher."""
        teacher = self.pair.first("teacher")
        return teacher.top1 if teacher else None


def _candidates(row: _Row, numbers: PublishedNumbers) -> Iterator[_Candidate]:
    """Yields the numbers published for a row's dataset, networks and method, whatever the settings."""
    for key in _published_cells(row, numbers):
        for number in numbers.cells[key]:
            published = row.published(numbers, key, number)
            if numbers.file.sources[number.source].is_comparable and row.is_variant(published):
                yield _Candidate(numbers, key, number, _reasons(row, numbers, number, published))


def _published_cells(row: _Row, numbers: PublishedNumbers) -> list[PublishedCell]:
    kind, cell, prefix = row.row.kind, row.cell, numbers.file.prefix
    dataset = cell.trial.dataset.name
    teacher, student = (
        name.removeprefix(prefix) if name.startswith(prefix) else "" for name in (cell.teacher, cell.student)
    )
    if kind == "method":
        names = numbers.methods.get(cell.method, ())
        return [key for name in names if (key := PublishedCell(dataset, teacher, student, name)) in numbers.cells]
    keys = [PublishedCell(dataset, teacher, "", TEACHER)]
    if kind == "student":
        keys = [PublishedCell(dataset, "", student, ALONE), PublishedCell(dataset, student, "", TEACHER)]
    return [key for key in keys if key in numbers.cells][:1]


def _reasons(row: _Row, numbers: PublishedNumbers, number: PublishedNumber, published: Mapping[str, Any]) -> list[str]:
    """Differences between the training of a row and that behind a number; empty if there are none."""
    kind, cell = row.row.kind, row.cell
    if kind == TEACHER:
        return _teacher_differences(row, numbers, measured=None)
    if row.row.epochs not in ((), (cell.trial.epochs,)):
        return ["results of another protocol than the recipe's"]
    protocol = merge(_protocol(numbers, cell.student, number.source), published.get("training", {}))
    reasons = list(differences(row.settings, protocol))
    if kind == "student":
        return reasons
    settings = {name: value for name, value in published.items() if name not in (*_ROW_KEYS, *_METHOD_SETTINGS)}
    hyperparameters = cell.trial.method.hyperparameters
    reasons += differences({name: hyperparameters.get(name) for name in settings}, settings)
    return list(dict.fromkeys(reasons + _teacher_differences(row, numbers, measured=row.teacher_top1)))


def training_differences(trial: Trial, numbers: PublishedNumbers) -> list[str]:
    """Returns the differences between a trial and the protocol of a file, whatever the method; empty if none."""
    return list(differences(_settings(trial), _protocol(numbers, trial.model)))


def _settings(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.settings().items() if key not in _NOT_PUBLISHED}


def _protocol(numbers: PublishedNumbers, model: str, source: str | None = None) -> dict[str, Any]:
    """The protocol of a network's training; with a source, of that source's."""
    file = numbers.file
    protocol = merge(file.protocol, (file.sources[source].protocol or {}) if source else {})
    rate = file.learning_rates.get(model.removeprefix(file.prefix))
    if rate:
        protocol["optimizer"] = {**(protocol.get("optimizer") or {}), "lr": rate}
    return protocol


def _teachers(files: Sequence[PublishedNumbers]) -> dict[tuple[str, str], float]:
    """The published accuracies of teachers, by dataset and full name, of the first file and source that has them."""
    teachers: dict[tuple[str, str], float] = {}
    for numbers in files:
        for cell, (first, *_) in numbers.cells.items():
            if cell.method == TEACHER:
                teachers.setdefault((cell.dataset, f"{numbers.file.prefix}{cell.teacher}"), first.top1)
    return teachers


def _teacher_differences(row: _Row, numbers: PublishedNumbers, measured: MeanAndStd | None) -> list[str]:
    """The same for a row's teacher. ``measured`` is its accuracy, if that must be the published one's."""
    teacher = row.cell.taught_by
    if teacher is None:
        return ["no teacher"]
    if isinstance(teacher, Trial):
        return [f"teacher's {phrase}" for phrase in training_differences(teacher, numbers)]
    settings = teacher.settings()
    reasons = list(differences(settings["dataset"], numbers.file.protocol.get("dataset", {}), "teacher's dataset."))
    if "input" in settings:
        reasons.append("teacher with another input")
    published = row.teachers.get((teacher.dataset.name, teacher.model))
    if measured and published and abs(measured.mean - published) > numbers.file.teacher_tolerance:
        reasons.append(f"a given teacher of {measured.mean:.2f} % where the published one has {published:.2f} %")
    return reasons
