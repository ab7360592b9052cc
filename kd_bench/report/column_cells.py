"""Fills the columns of ``--columns`` from the evaluations of the trials behind each row.

Values of different protocols are never averaged: other images, another way to fit a temperature, another machine. A
column has the protocol that most of its values have; a row without any of these has its own, and is marked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.report import ood_columns
from kd_bench.report.columns import COLUMNS, Value
from kd_bench.report.crossed import estimate_cells, is_taught
from kd_bench.report.statistics import estimate
from kd_bench.report.summary import ColumnCell, PairTable, Summary, SummaryRow
from kd_bench.trials.evaluation_file import EVALUATION, Evaluation, other_subject, read_evaluation_file
from kd_bench.trials.reader import read_trial
from kd_bench.utils.regular_files import BadFile
from kd_bench.utils.text import first_few

if TYPE_CHECKING:
    from kd_bench.config.trial import PlannedTrial

#: Mark of a cell whose protocol is not the column's.
MARK = "#"

#: Columns of trials with held-out images.
_HELD_OUT = ("val_top1", "top1_val_best")

#: Number of protocols, and of rows, that a note names.
_NAMED = 3

#: Columns of ``trial_values`` about how values were measured, and the values that they are about.
PROTOCOLS = {"ece_scaled_protocol": "ece_scaled", "latency_protocol": "latency", "corrupted_protocol": "corrupted",
             "auroc_protocol": "auroc", "energy_protocol": "energy"}  # fmt: skip

#: Trials of a recipe, and the folder that has a folder for each of them.
RecipeCells = tuple[Path, Sequence["PlannedTrial"]]


def with_columns(
    summary: Summary, recipes: Iterable[RecipeCells], shown: Sequence[str], others: Iterable[str] = ()
) -> Summary:
    """Returns the summary with the values of some columns, and with notes on those that are shown.

    Args:
        summary: The summary.
        recipes: The planned trials and their folders. The teachers' trials are in ``teachers`` beside these.
        shown: Names of the columns that the table shows, instead of its usual ones; none for the usual ones.
        others: Names of columns whose values are needed, too.
    """
    reader = _Reader(recipes)
    names = tuple(dict.fromkeys((*shown, *others)))
    measured = [name for name in names if COLUMNS[name].has_protocol]
    values = {id(row): reader.values(pair, row, measured) for pair in summary.pairs for row in pair.rows}
    usual = {name: _usual_protocols(summary, values, name) for name in measured}
    pairs = []
    for pair in summary.pairs:
        rows = []
        for row in pair.rows:
            of, by_column = values[id(row)]
            cells = {name: _cell(by_column[name], of, usual[name].get(pair.dataset)) for name in measured}
            cells |= {
                name: ColumnCell(COLUMNS[name].of_row(row), row.done)
                for name in names
                if not COLUMNS[name].has_protocol
            }
            rows.append(replace(row, columns=cells))
        pairs.append(replace(pair, rows=tuple(rows)))
    summary = replace(summary, pairs=tuple(pairs), problems=(*summary.problems, *reader.problems))
    notes = tuple(_notes(summary, shown, usual))
    return replace(summary, columns=tuple(shown), footnotes=(*summary.footnotes, *notes))


def trial_values(folder: Path, teachers: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Returns the values of a finished trial's evaluation and result by column, and what is wrong with the evaluation.

    The protocols of ``PROTOCOLS`` are among them. A value that was measured on several machines is not, because a line
    has place for one. Of several other sets of images, the mean is.

    Args:
        folder: The trial's folder.
        teachers: Ids of the teachers that fidelity may be to.
    """
    evaluation, problem = read_trial_evaluation(folder)
    values_by_column = {name: _values(name, folder, evaluation, teachers) for name in COLUMNS}
    single = {
        name: values[0]
        for name, values in values_by_column.items()
        if len(values) == 1 or (values and name in ood_columns.READERS)
    }
    protocols = {key: single[name].protocol for key, name in PROTOCOLS.items() if name in single}
    return {name: value.value for name, value in single.items()} | protocols, problem


def read_trial_evaluation(folder: Path) -> tuple[Evaluation | None, str | None]:
    """Returns the evaluation of a finished trial's present weights, and a sentence if it is damaged or of others."""
    path = folder / EVALUATION
    try:
        evaluation = read_evaluation_file(path)
    except BadFile as error:
        return None, f"{path}: {error}; its columns are empty"
    if evaluation is None:
        return None, None
    result = read_trial(folder).result
    if result is None or result["status"] != "done":
        return None, None
    fault = other_subject(evaluation, result["weights_sha256"], result.get("images"))
    return (None, f"{path}: {fault}; its columns are empty") if fault else (evaluation, None)


def _values(name: str, folder: Path, evaluation: Evaluation | None, teachers: Iterable[str]) -> list[Value]:
    """Returns the values of a column for a trial with this evaluation, or without one."""
    column = COLUMNS[name]
    if column.of_result is not None:
        result = read_trial(folder).result
        return [] if result is None or result["status"] != "done" else column.of_result(result)
    return [] if evaluation is None else column.values(evaluation, teachers)


class _Reader:
    """Reads the evaluations of the trials of some recipes, each once."""

    def __init__(self, recipes: Iterable[RecipeCells]) -> None:
        self.problems: list[str] = []
        self._folders: dict[str, Path] = {}
        self._teachers: dict[tuple[str, str], list[str]] = defaultdict(list)
        for folder, cells in recipes:
            for cell in cells:
                self._folders[cell.trial_id] = folder / cell.trial_id
                if cell.teacher_id is not None:
                    self._folders[cell.teacher_id] = folder.parent / "teachers" / cell.teacher_id
                    self._teachers["" if cell.teacher == "-" else cell.teacher, cell.trial_id].append(cell.teacher_id)
        self._read = cache(self._read_once)

    def values(
        self, pair: PairTable, row: SummaryRow, names: Iterable[str]
    ) -> tuple[int, dict[str, list[list[Value]]]]:
        """Returns the number of a row's trials, and the values of each trial that has some, by column."""
        teachers = self._teachers_of(pair)
        if row.kind == "teacher":
            ids = list(dict.fromkeys(teacher_id for teacher_ids in teachers.values() for teacher_id in teacher_ids))
            of_trials: Mapping[str, list[str]] = {name: [] for name in ids}
        else:
            of_trials = {trial: teachers[trial] for trial in row.trials}
        cells = dict(zip(row.trials, row.cells, strict=False))
        values_by_column: dict[str, list[list[Value]]] = {name: [] for name in names}
        for trial, teacher_ids in of_trials.items():
            evaluation = self._read(trial)
            for name, values in values_by_column.items():
                of_trial = _values(name, self._folders[trial], evaluation, teacher_ids)
                values.append([value._replace(cell=cells.get(trial)) for value in of_trial])
        return len(of_trials), {name: [item for item in values if item] for name, values in values_by_column.items()}

    def _teachers_of(self, pair: PairTable) -> dict[str, list[str]]:
        """Returns the ids of the teachers of each trial in a pair.

        The student alone is in several pairs. If their teachers have one name, they are those of the pair's methods.
        """
        teachers = {trial: self._teachers.get((pair.teacher, trial), []) for row in pair.rows for trial in row.trials}
        methods = {trial for row in pair.rows if row.kind == "method" for trial in row.trials}
        of_methods = {name for trial in methods for name in teachers[trial]}
        return {
            trial: names if len(names) == 1 else [name for name in names if name in of_methods]
            for trial, names in teachers.items()
        }

    def _read_once(self, trial: str) -> Evaluation | None:
        evaluation, problem = read_trial_evaluation(self._folders[trial])
        if problem is not None:
            self.problems.append(problem)
        return evaluation


def _usual_protocols(
    summary: Summary, values: Mapping[int, tuple[int, dict[str, list[list[Value]]]]], name: str
) -> dict[str, str]:
    """Returns the protocol that most values of a column have, by dataset; the first one if several are as frequent."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in summary.pairs:
        for row in pair.rows:
            for of_trial in values[id(row)][1][name]:
                counts[pair.dataset].update(list(dict.fromkeys(value.protocol for value in of_trial)))
    return {dataset: count.most_common(1)[0][0] for dataset, count in counts.items() if count}


def _cell(trials: Sequence[Sequence[Value]], of: int, usual: str | None) -> ColumnCell:
    """Returns the mean of the values of the usual protocol; if there are none, that of the row's most frequent one."""
    counts = Counter(protocol for values in trials for protocol in dict.fromkeys(item.protocol for item in values))
    if not counts:
        return ColumnCell(None, of)
    protocol = usual if usual in counts else counts.most_common(1)[0][0]
    chosen = [value for values in trials for value in _first(values, lambda item: item.protocol == protocol)]
    by_cell = {value.cell: value.value for value in chosen if value.cell is not None}
    mean = estimate_cells(by_cell) if is_taught(by_cell) else estimate([value.value for value in chosen])
    others = tuple(dict.fromkeys(
        values[0].protocol for values in trials if all(value.protocol != protocol for value in values)
    ))  # fmt: skip
    return ColumnCell(mean, of, protocol, protocol != usual, others)


def _first(values: Iterable[Value], condition: Callable[[Value], bool]) -> list[Value]:
    return [value for value in values if condition(value)][:1]


def _notes(summary: Summary, shown: Sequence[str], usual: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yields what each column is and how it was measured, and what is lacking or left out."""
    several = len({pair.dataset for pair in summary.pairs}) > 1
    if shown and "top1" not in shown:
        yield "Cells: mean ± sample standard deviation (ddof = 1) over the line's trials."
    protocols: dict[str, list[str]] = {}
    for name in shown:
        column = COLUMNS[name]
        if name != "top1":  # whose note every table has
            yield column.note
        if not column.has_protocol:
            continue
        text = "; ".join(f"{key}: {value}" if several else value for key, value in usual[name].items() if value)
        if text:
            protocols.setdefault(text, []).append(column.name.replace(",", ""))
    for text, titles in protocols.items():
        yield f"Measured with ({', '.join(titles)}): {text}."
    cells = [(row, COLUMNS[name], row.columns[name]) for row in summary.rows for name in shown]
    lacking = {row.kind == "teacher" for row, column, cell in cells if column.metric and cell.value is None
               and (row.kind, column.metric) != ("teacher", "fidelity")}  # fmt: skip
    if False in lacking:
        yield "Empty cells: not evaluated yet; see kd-bench evaluate."
    if True in lacking:
        yield "Empty cells of a teacher: to fill them, evaluate its folder, which is teachers/ID in the results folder."
    if any(name in _HELD_OUT and row.done and row.kind != "teacher" and row.columns[name].value is None
           for row in summary.rows for name in shown):  # fmt: skip
        yield "Empty held-out columns: no training images were held out; see dataset.holdout."
    if any(column.of_result and cell.value is None for _, column, cell in cells):
        yield "Empty energy: no counter measured all epochs; see kd-bench doctor."
    if any(column.has_protocol and cell.partial for _, column, cell in cells):
        yield "n of m: only n of the line's m finished trials have this value."
    left_out = dict.fromkeys(
        f"{column.name.replace(',', '')} of {row.name} ({other} instead of {cell.protocol})"
        for row, column, cell in cells for other in cell.others
    )  # fmt: skip
    if left_out:
        yield f"Left out of means, because it was measured otherwise: {first_few(list(left_out), _NAMED, '; ')}."
    marked = dict.fromkeys(
        f"{column.name.replace(',', '')} of {row.name} ({cell.protocol})" for row, column, cell in cells if cell.marked
    )
    if marked:
        named = first_few(list(marked), _NAMED, "; ")
        yield f"{MARK}: measured otherwise than the rest of the column, not to be compared: {named}."


def column_text(name: str, cell: ColumnCell | None) -> str:
    """Returns the text of a cell; empty if there is no value."""
    if cell is None or cell.value is None:
        return ""
    column = COLUMNS[name]
    text = column.spread(cell.value)
    if column.has_protocol and cell.partial:
        text += f" ({cell.value.n} of {cell.of})"
    return f"{text} {MARK}" if cell.marked else text


def best_two_rows(rows: Sequence[SummaryRow], name: str) -> dict[int, int]:
    """Returns 1 for the best and 2 for the second best row of a column, by the row's index.

    Only complete methods of the column's protocol have a rank. Values that print alike share one.
    """
    column, values = COLUMNS[name], {}
    for index, row in enumerate(rows):
        cell = row.columns.get(name)
        if row.ranked and cell is not None and cell.value is not None and not (cell.marked or cell.partial):
            values[index] = float(column.format(cell.value.mean))
    order = sorted(set(values.values()), reverse=column.better == "higher")[:2]
    return {index: order.index(value) + 1 for index, value in values.items() if value in order}
