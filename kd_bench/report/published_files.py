"""Reads the published values: CSV files, and the files (YAML) with the protocols and sources behind their numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator

from kd_bench.config.base import Settings
from kd_bench.config.load import find_published, merge
from kd_bench.config.numbers import NonNegative, Positive
from kd_bench.config.validate import parse
from kd_bench.config.yaml_reader import read_mapping
from kd_bench.report.summary import Reports
from kd_bench.utils.errors import UserError, unknown

_COLUMNS = ("dataset", "teacher", "student", "method", "top1", "std", "runs", "source")

#: Where a number was read: in a publication itself, or in something that repeats it.
Origin = Literal["paper", "readme", "log", "figure", "script", "issue", "quoted", "notes"]


def _check_protocol(settings: dict[str, Any]) -> dict[str, Any]:
    """Raises a ValueError if settings that others are merged into are no settings."""
    for key, example in (("dataset", "{name: cifar100}"), ("optimizer", "{name: sgd, lr: 0.05}")):
        value = settings.get(key, {})
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{key} should have settings, as in {example} (it is {value!r})")
    return settings


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    training = row.get("training", {})
    if not isinstance(training, Mapping):
        raise ValueError(f"training should have settings, as in {{epochs: 240}} (it is {training!r})")
    _check_protocol(dict(training))
    return row


#: Settings of a trial.
Protocol = Annotated[dict[str, Any], AfterValidator(_check_protocol)]

#: Settings behind a row of a table.
PublishedRow = Annotated[dict[str, Any], AfterValidator(_check_row)]


class Publication(Settings):
    """A source of published numbers, all of one protocol.

    Attributes:
        title: Title for people.
        reports: Epoch of the accuracies: the last, or the best on the test set.
        reports_of: The same for rows for which it is another one, e.g. because they were copied from elsewhere.
        origin: Where the numbers were read. Those that are "quoted" by a publication of others, and those that were
            read in "notes" about a publication, are kept and never shown beside trials: their protocol is not certain.
        extra_layers: Whether the student keeps layers of the method at inference, so that it is another network.
        protocol: Settings of a trial that differ from those of the file; None if they are not known, so that no trial
            has them.
        methods: Rows that differ from those of the file, as in ``PublishedFile``.
        pairs: The same for one pair.
        note: Further remarks.
    """

    title: str
    reports: Reports
    reports_of: dict[str, Reports] = {}
    origin: Origin = "readme"
    extra_layers: bool = False
    protocol: Protocol | None = {}
    methods: dict[str, PublishedRow] = {}
    pairs: dict[str, dict[str, PublishedRow]] = {}
    note: str = ""

    @property
    def is_comparable(self) -> bool:
        """Whether the numbers may stand beside trials of their protocol."""
        return self.origin not in ("quoted", "notes") and self.protocol is not None


class PublishedFile(Settings):
    """The file beside a table of published numbers.

    Attributes:
        numbers: File of the table, in the same folder.
        protocol: All settings of a trial. A setting that is not named here must not be set.
        prefix: Prefix of the networks' names, which the tables leave out.
        learning_rates: Learning rates of networks for which the protocol has another one.
        teacher_tolerance: Percentage points by which a given teacher may differ from the published one.
        methods: Hyperparameters behind the numbers, by row of the tables. Others are not compared. A row has the keys
            of a recipe's row: ``method`` if it is not the row's name, and ``training`` for settings of the protocol
            that differ.
        pairs: The same for one pair, ``teacher > student``, and row.
        sources: Sources in order of precedence.
    """

    numbers: str
    protocol: Protocol
    prefix: str = ""
    learning_rates: dict[str, Positive] = {}
    teacher_tolerance: NonNegative
    methods: dict[str, PublishedRow]
    pairs: dict[str, dict[str, PublishedRow]] = {}
    sources: dict[str, Publication]

    def row(self, source: str, networks: str, name: str) -> dict[str, Any]:
        """Returns the settings behind a row of a source, for a pair ``teacher > student``."""
        publication = self.sources[source]
        row: dict[str, Any] = {}
        of_pair, of_source = self.pairs.get(networks, {}), publication.pairs.get(networks, {})
        for rows in (self.methods, publication.methods, of_pair, of_source):
            row = merge(row, rows.get(name, {}))
        return row

    def method(self, name: str) -> str:
        """Returns the method of a row."""
        return str(self.methods.get(name, {}).get("method", name))


class PublishedCell(NamedTuple):
    """The cell of a published number. ``teacher`` is empty for a student alone, ``student`` for a teacher."""

    dataset: str
    teacher: str
    student: str
    method: str


class PublishedNumber(NamedTuple):
    """A published accuracy in percent, with its standard deviation and number of runs if they are published."""

    top1: float
    std: float | None
    source: str
    runs: int | None = None


@dataclass(frozen=True)
class PublishedNumbers:
    """The numbers of a file: name, file, and the numbers of each cell from all sources in order of precedence."""

    name: str
    file: PublishedFile
    cells: Mapping[PublishedCell, tuple[PublishedNumber, ...]]

    @cached_property
    def methods(self) -> dict[str, tuple[str, ...]]:
        """The names of the rows by method."""
        names = dict.fromkeys(cell.method for cell in self.cells)
        methods = dict.fromkeys(map(self.file.method, names))
        return {method: tuple(name for name in names if self.file.method(name) == method) for method in methods}

    def reports(self, cell: PublishedCell, number: PublishedNumber) -> Reports:
        """Returns the epoch of a number."""
        source = self.file.sources[number.source]
        return source.reports_of.get(cell.method, source.reports)


def read(name: str, context: str) -> PublishedNumbers:
    """Reads the published numbers that a recipe names.

    Args:
        name: Name of a file in ``results/published/``, without its suffix, or the path of such a file.
        context: Where the name was written, for errors.

    Raises:
        UserError: If there is no such file, or the file or its table is damaged.
    """
    path = find_published(name, context)
    file = parse(PublishedFile, _read_extended(path), str(path))
    order = list(file.sources)
    cells: dict[PublishedCell, dict[str, PublishedNumber]] = {}
    for line, row in read_rows(path.parent / file.numbers, _COLUMNS):
        top1 = _percentage(f"{line}: top1", row["top1"])
        std = _percentage(f"{line}: std", row["std"]) if row["std"] else None
        runs = _count(f"{line}: runs", row["runs"]) if row["runs"] else None
        if row["source"] not in file.sources:
            raise unknown("source", row["source"], order, line)
        numbers = cells.setdefault(PublishedCell(row["dataset"], row["teacher"], row["student"], row["method"]), {})
        if row["source"] in numbers:
            raise UserError(f"{line}: repeats a number of an earlier line")
        numbers[row["source"]] = PublishedNumber(top1, std, row["source"], runs)
    in_order = {
        cell: tuple(numbers[source] for source in order if source in numbers) for cell, numbers in cells.items()
    }
    return PublishedNumbers(path.stem, file, in_order)


def _read_extended(path: Path) -> dict[str, Any]:
    """The content of a file, merged into that of the file beside it that it ``extends``, if it does."""
    content = read_mapping(path, "file of published numbers")
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: extends: should be the name of a file beside it (it is {base!r})")
    return merge(read_mapping(path.parent / base, "file of published numbers"), content)


def _percentage(context: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UserError(f"{context}: {text!r} is no percentage")
    return value


def _count(context: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UserError(f"{context}: {text!r} is no number of runs")
    return int(text)


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a file, each with its file and line for errors.

    Args:
        path: The file.
        columns: The columns that it must have; empty for any.

    Raises:
        UserError: If the file cannot be read, has other columns, or a row has not one value for each column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets write a byte order mark
            reader = csv.DictReader(stream)
            names = reader.fieldnames or ()
            if columns and list(names) != list(columns):
                raise UserError(f"{path}: should have the columns {', '.join(columns)}")
            for row in reader:
                context = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{context}: should have {len(names)} values")
                yield context, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
