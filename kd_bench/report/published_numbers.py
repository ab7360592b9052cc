"""Published numbers beside measured ones: only where a trial was trained as what it is compared with, and never mixed.

What is published lies in ``results/published/``: a table (CSV, a row a number and source) and beside it a file (YAML)
that says by which protocol the numbers were measured, with which hyper-parameters, and who their sources are. A recipe
names the file. A line of its table has a published number beside it where every setting of its trials is that of the
protocol; where one is not, a footnote says which.
"""

from __future__ import annotations

import csv
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kd_bench.config.base import NonNegative, Positive, Settings
from kd_bench.config.load import parse, read_mapping
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.report.protocol import IDENTITY, NAMED, differences, instead
from kd_bench.report.statistics import MeanAndStd, mean_interval
from kd_bench.report.table import ALONE, CONFIDENCE, PairTable, Published, Row, Summary
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import package_path

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: What the tables call a network that was trained to teach.
TEACHER = "teacher"

#: What a file of published numbers does not say of a trial.
_UNSAID = IDENTITY | {"schema"}

_REPORTS = {"last": "last epoch", "best": "best epoch", "unknown": "epoch not said"}

_COLUMNS = ("dataset", "teacher", "student", "method", "top1", "std", "source")


class Publication(Settings):
    """Who published numbers.

    Attributes:
        title: For people.
        reports: The epoch that accuracies are taken from: the last, or the best on the test set.
        note: What else one should know.
    """

    title: str
    reports: Literal["last", "best", "unknown"]
    note: str = ""


class File(Settings):
    """What may stand in the file beside a table of published numbers.

    Attributes:
        numbers: The table's file, in the same folder.
        protocol: Settings of a trial, whole: a setting that is not named here must not be there.
        prefix: What the names of the networks begin with, which the tables leave out.
        learning_rates: Networks that the protocol has another learning rate for.
        teacher_tolerance: Percentage points by which a given teacher may differ from the published one.
        methods: Hyper-parameters behind the numbers, by method; those not named are not asked for.
        pairs: The same for one pair, ``teacher > student``, and method.
        sources: In order of precedence.
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
    """What a number is of. ``teacher`` is empty for a student alone, ``student`` for a teacher."""

    dataset: str
    teacher: str
    student: str
    method: str


class PublishedNumber(NamedTuple):
    """A published accuracy in percent, its spread if that is published, and its source's key."""

    top1: float
    std: float | None
    source: str


@dataclass(frozen=True)
class Numbers:
    """Published numbers and what they were measured by; of each cell all sources, in order of precedence."""

    name: str
    file: File
    cells: Mapping[PublishedCell, tuple[PublishedNumber, ...]]


def read(name: str, context: str) -> Numbers:
    """The published numbers that a recipe names.

    Args:
        name: Name of a file in ``results/published/``, without its suffix, or the path of such a file.
        context: Where it was written, for errors.

    Raises:
        UserError: Where there is none, or the file or its table is damaged.
    """
    path = Path(name) if Path(name).is_file() else package_path("results", "published", f"{name}.yaml")
    if not path.is_file():
        known = (one.stem for one in package_path("results", "published").glob("*.yaml"))
        raise unknown("file of published numbers", name, known, context)
    file = parse(File, read_mapping(path, "file of published numbers"), str(path))
    order = list(file.sources)
    cells: dict[PublishedCell, list[PublishedNumber]] = {}
    for line, row in _rows(path.parent / file.numbers):
        if row["source"] not in file.sources:
            raise unknown("source", row["source"], order, f"{path.parent / file.numbers}: line {line}")
        cell = PublishedCell(row["dataset"], row["teacher"], row["student"], row["method"])
        found = cells.setdefault(cell, [])
        found.append(PublishedNumber(float(row["top1"]), float(row["std"]) if row["std"] else None, row["source"]))
        found.sort(key=lambda number: order.index(number.source))
    return Numbers(path.stem, file, {cell: tuple(found) for cell, found in cells.items()})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The table's lines with their numbers, checked."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != _COLUMNS:
                raise UserError(f"{path}: should have the columns {', '.join(_COLUMNS)}")
            seen = set()
            for row in reader:
                context = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{context}: should have {len(_COLUMNS)} values")
                for column in ("top1", "std"):
                    if (row[column] or column == "top1") and not _percentage(row[column]):
                        raise UserError(f"{context}: {column}: {row[column]!r} is no percentage")
                key = tuple(row[column] for column in _COLUMNS if column not in ("top1", "std"))
                if key in seen:
                    raise UserError(f"{context}: gives a number that stands above once more")
                seen.add(key)
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _percentage(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100
    except ValueError:
        return False


def compare(summary: Summary, planned: Sequence[PlannedTrial], numbers: Numbers) -> Summary:
    """Puts published numbers beside the lines that were trained as they were, and says why others have none.

    Args:
        summary: The measured table.
        planned: What it is the table of.
        numbers: What is published.

    Returns:
        The same measured numbers, with ``Row.published`` where it applies, and more footnotes.
    """
    first: dict[tuple[str, str, str, str], PlannedTrial] = {}
    for one in planned:
        teacher = "" if one.teacher == "-" else one.teacher
        first.setdefault((one.dataset, teacher, one.student, one.label), one)
    said = _Said(numbers)
    pairs = []
    for pair in summary.pairs:
        there = [one for key, one in first.items() if key[:3] == (pair.dataset, pair.teacher, pair.student)]
        by_label = {one.label: one for one in there}
        rows = []
        for row in pair.rows:
            cell = there[0] if row.kind == TEACHER else by_label[row.label]
            rows.append(_beside(row, pair, cell, numbers, said))
        pairs.append(replace(pair, rows=tuple(rows)))
    return replace(summary, pairs=tuple(pairs), footnotes=(*summary.footnotes, *said.footnotes()))


class _Said:
    """What the footnotes have to say, gathered while lines are looked at."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.marks: dict[str, str] = {}
        self.others: dict[str, list[str]] = {}
        self.refused: dict[str, list[str]] = {}

    def mark(self, source: str) -> str:
        """The letter of a source."""
        return self.marks.setdefault(source, string.ascii_letters[len(self.marks)])

    def disagreement(self, row: Row, pair: PairTable, found: tuple[PublishedNumber, ...]) -> None:
        """Notes the other sources of a number that is shown, where they say something else."""
        pairs = pair.student if row.kind == "student" else f"{pair.teacher} → {pair.student}"
        of = row.label if row.kind == TEACHER else f"{row.label} of {pairs}"
        for other in found[1:]:
            if other.top1 != found[0].top1:
                self.others.setdefault(other.source, []).append(f"{of} {other.top1:.2f}")

    def footnotes(self) -> Iterator[str]:
        """Sentences about the columns of published numbers, or about why there are none."""
        if self.marks:
            legend = (f"({mark}) {key}, {self._source(key)}" for key, mark in self.marks.items())
            yield f"Published, and measured by nobody here: {'; '.join(legend)}."
            percent = round(100 * CONFIDENCE)
            yield (
                "Minus published: measured mean of the last epoch minus the published value in percentage points; "
                f"inside or outside says where the published value lies, of the {percent} % interval of the measured "
                "mean (t distribution over trials, none for a single one). The published spread is mostly unknown."
            )
        for key, numbers in self.others.items():
            yield f"Published otherwise by {key}, {self._source(key)}: {'; '.join(dict.fromkeys(numbers))}."
        refused = list(self.refused.items())
        if refused and not self.marks:
            # Nothing is compared: one reason says it, the one that most lines have.
            refused = [max(refused, key=lambda one: len(one[1]))]
        for reason, labels in refused:
            whom = f" of {', '.join(dict.fromkeys(labels))}" if self.marks else ""
            yield f"No comparison{whom} with published numbers ({self.numbers.name}): {reason}."

    def _source(self, key: str) -> str:
        source = self.numbers.file.sources[key]
        return f"{source.title}, {_REPORTS[source.reports]}"


def _beside(row: Row, pair: PairTable, cell: PlannedTrial, numbers: Numbers, said: _Said) -> Row:
    """The line with what is published of it, if anything is and the settings agree."""
    found = _find(row, cell, numbers)
    if not found:
        return row
    reasons = _reasons(row, pair, cell, numbers)
    if reasons:
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        name = TEACHER if row.kind == TEACHER else row.label
        said.refused.setdefault(", ".join(reasons[:NAMED]) + more, []).append(name)
        return row
    primary = found[0]
    said.disagreement(row, pair, found)
    interval = mean_interval(row.top1, CONFIDENCE) if row.top1 else None
    shown = Published(
        primary.top1,
        primary.std,
        primary.source,
        said.mark(primary.source),
        row.top1.mean - primary.top1 if row.top1 else None,
        interval[0] <= primary.top1 <= interval[1] if interval else None,
    )
    return replace(row, published=shown)


def _find(row: Row, cell: PlannedTrial, numbers: Numbers) -> tuple[PublishedNumber, ...]:
    """What is published of a line, whatever the settings; the data set counts, so that nothing else is called so."""
    prefix, dataset = numbers.file.prefix, cell.trial.dataset.name
    teacher, student = (name.removeprefix(prefix) if name.startswith(prefix) else "" for name in _networks(cell))
    if row.kind == TEACHER:
        return numbers.cells.get(PublishedCell(dataset, teacher, "", TEACHER), ()) if teacher else ()
    if not student:
        return ()
    if row.kind == "student":
        alone = numbers.cells.get(PublishedCell(dataset, "", student, ALONE), ())
        return alone or numbers.cells.get(PublishedCell(dataset, student, "", TEACHER), ())
    return numbers.cells.get(PublishedCell(dataset, teacher, student, cell.method), ()) if teacher else ()


def _networks(cell: PlannedTrial) -> tuple[str, str]:
    return cell.teacher, cell.student


def _reasons(row: Row, pair: PairTable, cell: PlannedTrial, numbers: Numbers) -> list[str]:
    """How a line was trained otherwise than what is published of it; empty where it was not."""
    taught_by = cell.taught_by
    if row.kind == TEACHER:
        return _of_teacher(taught_by, None, numbers)
    if not row.comparable:
        return ["results of another protocol than the recipe's"]
    reasons = _of_training(cell.trial, numbers)
    if row.kind == "student":
        return reasons
    wanted = numbers.file.methods.get(cell.method, {}) | _of_pair(cell, numbers)
    given = cell.trial.method.hyperparameters
    reasons += [instead(key, given.get(key), value) for key, value in wanted.items() if given.get(key) != value]
    measured = next((one.top1 for one in pair.rows if one.kind == TEACHER), None)
    return reasons + [one for one in _of_teacher(taught_by, measured, numbers) if one not in reasons]


def _of_pair(cell: PlannedTrial, numbers: Numbers) -> dict[str, Any]:
    prefix = numbers.file.prefix
    pair = " > ".join(name.removeprefix(prefix) for name in _networks(cell))
    return numbers.file.pairs.get(pair, {}).get(cell.method, {})


def _of_training(trial: Trial, numbers: Numbers) -> list[str]:
    file = numbers.file
    settings = {key: value for key, value in trial.settings().items() if key not in _UNSAID}
    wanted = dict(file.protocol)
    rate = file.learning_rates.get(trial.model.removeprefix(file.prefix))
    if rate is not None:
        wanted["optimizer"] = {**wanted["optimizer"], "lr": rate}
    return list(differences(settings, wanted))


def _of_teacher(
    taught_by: Trial | PretrainedTeacher | None, measured: MeanAndStd | None, numbers: Numbers
) -> list[str]:
    """The same of a teacher; ``measured`` is its accuracy where it must be the published one's."""
    if taught_by is None:
        return ["no teacher"]
    if isinstance(taught_by, Trial):
        return [f"teacher's {one}" for one in _of_training(taught_by, numbers)]
    settings = taught_by.settings()
    reasons = list(differences(settings["dataset"], numbers.file.protocol.get("dataset", {}), "teacher's dataset."))
    if "input" in settings:
        reasons.append("teacher's input of its own")
    name = taught_by.model.removeprefix(numbers.file.prefix)
    found = numbers.cells.get(PublishedCell(taught_by.dataset.name, name, "", TEACHER), ())
    if measured and found and abs(measured.mean - found[0].top1) > numbers.file.teacher_tolerance:
        reasons.append(f"a given teacher of {measured.mean:.2f} % where the published one has {found[0].top1:.2f} %")
    return reasons
