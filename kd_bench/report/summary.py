"""The summary of results as data: for each pair of networks the teacher, the student alone and the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_bench.report.crossed import Cell
from kd_bench.report.ranks import Ranking
from kd_bench.report.significance import Significance, correct, difference_tests, paired_t
from kd_bench.report.statistics import Difference, MeanAndStd

if TYPE_CHECKING:
    import pandas as pd

    from kd_bench.config.trial import PlannedTrial

#: Coverage of the intervals of differences.
CONFIDENCE = 0.95

#: Method of trials that are trained without a teacher ("student alone").
ALONE = "none"

#: Name of the row of these trials in a table.
STUDENT_ALONE = "student alone"

RowKind = Literal["teacher", "student", "method"]

#: Epoch of a published accuracy: the last, the best on the test set, or not stated.
Reports = Literal["last", "best", "unknown"]


def student_name(label: str) -> str:
    """Returns the name of a row of students that are trained without a teacher, in a table."""
    return STUDENT_ALONE if label == ALONE else f"{STUDENT_ALONE} ({label})"


def baseline_name(label: str) -> str:
    """Returns the name of a baseline in sentences. "none" would read as if nothing was compared."""
    return f"the {STUDENT_ALONE}" if label == ALONE else label


@dataclass(frozen=True)
class Published:
    """A published accuracy beside a row, in percent. It enters no statistic of the row.

    Attributes:
        top1: The published value.
        std: Its published standard deviation; None if there is none.
        source: Key of its source.
        mark: Letter that stands for the source and its epoch in this table.
        difference: Measured mean of the same epoch minus published value, in percentage points; None if nothing is
            measured yet, or if the source does not state the epoch.
        inside: Whether the value lies in the interval of the measured mean; None if there is no difference or interval.
        reports: Its epoch.
        runs: Number of runs whose mean it is; None if that is not known.
    """

    top1: float
    std: float | None
    source: str
    mark: str
    difference: float | None
    inside: bool | None
    reports: Reports = "last"
    runs: int | None = None

    @property
    def value(self) -> MeanAndStd:
        """The published value with its standard deviation."""
        return MeanAndStd(self.top1, self.std, 1)


@dataclass(frozen=True)
class ColumnCell:
    """A cell of a column of ``--columns``.

    Attributes:
        value: Mean over the trials that have the value; None if none has it.
        of: Number of trials that could have it.
        protocol: How the value was measured; None without a value.
        marked: Whether it was measured otherwise than most of the column.
        others: How values were measured that are left out of the mean.
    """

    value: MeanAndStd | None
    of: int
    protocol: str | None = None
    marked: bool = False
    others: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether only some of the trials have the value."""
        return self.value is not None and self.value.n < self.of


@dataclass(frozen=True)
class SummaryRow:
    """One row of a pair's table. Accuracies are top-1 in percent, differences in percentage points.

    Attributes:
        kind: Whether the row is of the teacher, of the student alone or of a method.
        label: The recipe's label of a student's row; the network's name of a teacher's.
        top1: Accuracy of the last epoch.
        best: Accuracy of the best epoch, which the test set itself selected.
        difference: ``top1`` minus the baseline's; None for the teacher, the baseline, and rows without a common seed.
            ``top1`` and ``difference`` of trials of several teachers have a ``crossing``.
        seconds: Mean seconds that training alone takes for an epoch.
        epochs: The different numbers of epochs of the finished trials.
        planned, done, failed, damaged, missing: Numbers of trials.
        note: Remark that a reader must know before quoting the row; empty for none.
        published: The value published for it under the same protocol, of the last epoch or of one that is not stated;
            None if there is none.
        published_best: The value published for it under the same protocol as the best epoch on the test set; None if
            there is none. It is compared with ``best``, never with ``top1``.
        method: The method's name; empty for a teacher.
        family: What the method distils, "features" or "logits"; empty if that is not known.
        other: Number of finished trials that are left out, because they had another protocol than the row's others.
        other_images: Number of finished trials that are left out, because they saw other images than most of the table.
        comparable: Whether data, augmentation, epochs and evaluated weights are those of the pair, so that the row may
            be compared with others.
        differences: The differences of ``difference`` by ascending seed, teacher by teacher; empty if there is none.
        trials: Ids of the trials behind the means; empty for a teacher.
        cells: Seeds of the teacher and of the student of each of these trials.
        memory: Largest memory in bytes that training took on its device; None if it was not recorded.
        gap: Accuracy of the best epoch minus that of the last, over the trials.
        held_out: Accuracy of the last epoch on held-out training images; None without any.
        selected: Accuracy of the epoch that the held-out images select; None without any.
        untuned: Whether the recipe says that no hyper-parameters of the method are published for the pair.
        columns: Cells of the columns of ``--columns`` by name.
        layout: Numbers of teachers and seeds if the pair's students are crossed with teachers: ``3 x 3``, ``– x 3`` of
            the student alone, ``3 x –`` of the teachers themselves; empty otherwise.
        teacher_seeds: Seeds of the teachers behind the means; empty if there are none.
    """

    kind: RowKind
    label: str
    top1: MeanAndStd | None
    best: MeanAndStd | None
    difference: Difference | None
    seconds: float | None
    epochs: tuple[int, ...]
    planned: int = 0
    done: int = 0
    failed: int = 0
    damaged: int = 0
    missing: int = 0
    note: str = ""
    published: Published | None = None
    published_best: Published | None = None
    method: str = ""
    family: str = ""
    other: int = 0
    other_images: int = 0
    comparable: bool = True
    differences: tuple[float, ...] = ()
    trials: tuple[str, ...] = ()
    memory: int | None = None
    gap: MeanAndStd | None = None
    held_out: MeanAndStd | None = None
    selected: MeanAndStd | None = None
    untuned: bool = False
    columns: Mapping[str, ColumnCell] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    layout: str = ""
    teacher_seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the row in a table."""
        if self.kind == "student":
            return student_name(self.label)
        return "teacher" if self.kind == "teacher" else self.label

    @property
    def p_t(self) -> float | None:
        """p-value that the mean difference is zero, by the distribution of its interval; None if there is no test."""
        crossing = self.difference.crossing if self.difference else None
        return crossing.p if crossing else paired_t(self.differences)

    @property
    def significance(self) -> Significance:
        """Tests of the differences, without Holm's correction."""
        return difference_tests(self.difference, self.differences, CONFIDENCE)

    @property
    def ranked(self) -> bool:
        """Whether the row may be called the best: it is a method, complete, and of the protocol of its pair."""
        return self.kind == "method" and self.complete and self.comparable and self.top1 is not None

    @property
    def complete(self) -> bool:
        """Whether all planned trials are done."""
        return self.done == self.planned

    @property
    def counts(self) -> str:
        """Number of finished trials or their layout; with that of planned trials if they differ: ``2/3, 1 damaged``."""
        if self.complete:
            return self.layout or str(self.done)
        return f"{self.done}/{self.planned}" + (f", {self.damaged} damaged" if self.damaged else "")


@dataclass(frozen=True)
class PairTable:
    """The rows of one pair, teacher first.

    Attributes:
        dataset, student: Their names.
        teacher: Name of the teacher; empty if the recipe has none.
        rows: The rows.
        crossed: Whether students are crossed with several teachers of the name.
    """

    dataset: str
    teacher: str
    student: str
    rows: tuple[SummaryRow, ...]
    crossed: bool = False

    @property
    def title(self) -> str:
        """Names of the networks and of the dataset."""
        networks = f"{self.teacher} → {self.student}" if self.teacher else self.student
        return f"{networks} on {self.dataset}"

    def first(self, kind: RowKind) -> SummaryRow | None:
        """Returns the first row of a kind; None if there is none."""
        return next((row for row in self.rows if row.kind == kind), None)

    @cached_property
    def significance(self) -> dict[str, Significance]:
        """Tests of the rows' differences by label, with Holm's correction for all methods. Imports ``scipy.stats``."""
        tests = {row.label: row.significance for row in self.rows if row.differences}
        methods = {row.label for row in self.rows if row.kind == "method"}
        return tests | correct({label: test for label, test in tests.items() if label in methods})


@dataclass(frozen=True)
class Summary:
    """All content of a table of results.

    Attributes:
        pairs: Tables of the pairs, in the recipe's order.
        baseline: Label that differences are taken to; None if no pair plans it.
        footnotes: Sentences that define the columns and name what is incomplete.
        problems: A sentence for each trial that failed or is damaged.
        rankings: Ranks of the methods over the pairs of a dataset, by dataset, if at least two pairs are complete.
        columns: Names of the columns of ``--columns`` that stand instead of the usual ones; empty for the usual ones.
    """

    pairs: tuple[PairTable, ...]
    baseline: str | None
    footnotes: tuple[str, ...]
    problems: tuple[str, ...]
    rankings: tuple[tuple[str, Ranking], ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def baseline_name(self) -> str | None:
        """Name of the baseline in sentences."""
        return None if self.baseline is None else baseline_name(self.baseline)

    @property
    def rows(self) -> list[SummaryRow]:
        """The rows of all pairs."""
        return [row for pair in self.pairs for row in pair.rows]

    @property
    def incomparable(self) -> set[tuple[str, str]]:
        """Pair's title and label of each row that is compared with nothing, because its protocol is not its pair's."""
        return {(pair.title, row.label) for pair in self.pairs for row in pair.rows if not row.comparable}

    @property
    def conclusions(self) -> tuple[str, ...]:
        """The footnotes that say what the differences show."""
        return tuple(note for note in self.footnotes if note.startswith("What "))

    def with_remark(self, remark: str, note: str) -> Summary:
        """Returns the summary with a remark in the title of every pair and a note above the other footnotes."""
        pairs = tuple(replace(pair, dataset=f"{pair.dataset}: {remark}") for pair in self.pairs)
        return replace(self, pairs=pairs, footnotes=(note, *self.footnotes))

    def with_families(self, families: Mapping[str, str]) -> Summary:
        """Returns the summary with the families of the methods, by the methods' names."""
        pairs = tuple(
            replace(pair, rows=tuple(replace(row, family=families.get(row.method, "")) for row in pair.rows))
            for pair in self.pairs
        )
        return replace(self, pairs=pairs)


@dataclass(frozen=True)
class FolderResults:
    """The results of one recipe, or of one folder.

    Attributes:
        name: Heading.
        about: A sentence below the heading.
        summary: The table.
        frame: The results that the table summarises, as from ``read_results``, with the same names of datasets.
        cells: The trials.
        folder: Folder of the trials. The teachers' trials are in ``teachers`` beside it.
        recipe: Name or file of the recipe, for ``kd-bench run``; empty for none.
        methods: Rows that ``--method`` adds to the recipe.
        trials, overrides: Number of seeds, and settings, that replace the recipe's.
        missing: A sentence that says why results of the recipe are missing; None for none.
        left_out: A sentence for each folder that is in no row, because its settings are damaged.
    """

    name: str
    about: str
    summary: Summary
    frame: pd.DataFrame
    cells: Sequence[PlannedTrial]
    folder: Path
    recipe: str = ""
    methods: tuple[str, ...] = ()
    trials: int | None = None
    overrides: tuple[str, ...] = ()
    missing: str | None = None
    left_out: tuple[str, ...] = ()
