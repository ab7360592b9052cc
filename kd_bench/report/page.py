"""One HTML page that holds everything: it fetches nothing, and what comes from files is text in it and never markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from kd_bench.report import plots, svg
from kd_bench.report.attack_table import AttackTable, attack_frame, summarise_attacks
from kd_bench.report.footnotes import count
from kd_bench.report.grid import grids, short_names
from kd_bench.report.published_robustness import published_lines
from kd_bench.report.render import spelt_p
from kd_bench.report.results_frame import read_result
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.table import PairTable, Row, Summary
from kd_bench.report.trial_data import TrialDataIndex, TrialLocation, script

if TYPE_CHECKING:
    import pandas as pd

    from kd_bench.config.trial import PlannedTrial

_NOTHING = "–"


@dataclass(frozen=True)
class PagePart:
    """What one recipe, or one folder, has.

    Attributes:
        name: Heading.
        about: A sentence below it.
        summary: The table.
        frame: What it was made of, as of ``read_results``, with the same names of data sets.
        cells: The trials.
        folder: Where they lie; teachers' lie in ``teachers`` beside it.
        recipe: By which name or file ``kd-bench run`` finds the recipe; empty for none.
        rows: The rows that ``--method`` adds to it.
    """

    name: str
    about: str
    summary: Summary
    frame: pd.DataFrame
    cells: Sequence[PlannedTrial]
    folder: Path
    recipe: str
    rows: tuple[str, ...] = ()


@dataclass
class Section:
    """A part as the template shows it."""

    part: PagePart
    lines: list[dict[str, Any]] = field(default_factory=list)
    forests: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    attacks: list[dict[str, Any]] = field(default_factory=list)
    grids: list[dict[str, Any]] = field(default_factory=list)


def page(parts: Sequence[PagePart]) -> str:
    """The page as text, UTF-8 safe.

    Args:
        parts: In the order in which they are to stand.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    import kd_bench

    templates = Environment(
        loader=PackageLoader("kd_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"spread": spread, "p": lambda p: _NOTHING if p is None else spelt_p(p), "signed": signed}
    loader = templates.loader
    assert loader is not None
    code, style = (loader.get_source(templates, name)[0] for name in ("report.js", "report.css"))
    build = _Build()
    sections = [build.section(part) for part in parts]
    trials = {row["trial_id"]: row["status"] for part in parts for row in part.frame.to_dict("records")}
    done = sum(status == "done" for status in trials.values())
    text = templates.get_template("report.html").render(
        sections=sections,
        pairs=build.pairs,
        methods=build.methods,
        families=sorted({family for _, family in build.methods.values() if family}),
        series=svg.series,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=kd_bench.__version__,
        counts=f"{done} of {count(len(trials), 'trial')} done",
        code=Markup(code),
        style=Markup(style),
        code_hash=_hash(code),
        style_hash=_hash(style),
        data=Markup(script({"cells": build.cells, **build.behind.data()})),
    )
    return text.encode("utf-8", "replace").decode()


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style, so that no other is run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def spread(value: MeanAndStd | None) -> str:
    """``76.64 ± 0.02``."""
    if value is None:
        return _NOTHING
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def signed(value: float | None) -> str:
    """``+1.20``, with a minus sign that is as wide."""
    if value is None:
        return _NOTHING
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


class _Build:
    """Gives pairs, methods and cells their numbers on the page, and gathers the trials behind them."""

    def __init__(self) -> None:
        self.behind = TrialDataIndex()
        self.pairs: dict[str, int] = {}
        self.methods: dict[str, tuple[int, str]] = {}
        self.cells: list[dict[str, Any]] = []

    def section(self, part: PagePart) -> Section:
        """Everything about one part."""
        section = Section(part)
        groups = dict(iter(part.frame.groupby(["dataset", "teacher", "student"], sort=False)))
        numbers: dict[int, int] = {}  # of a row's cell, by the row's identity
        for pair in part.summary.pairs:
            rows = groups[pair.dataset, pair.teacher, pair.student]
            for row in pair.rows:
                numbers[id(row)] = self._cell(part, pair, row, rows)
            section.lines += [self._line(pair, row, numbers[id(row)], part.summary.baseline) for row in pair.rows]
            self._pictures(section, part, pair, numbers)
        section.grids = [self._grid(grid, numbers) for grid in grids(part.summary)]
        section.attacks = list(self._attacks(part))
        return section

    def _pair(self, pair: PairTable) -> dict[str, Any]:
        names = short_names([pair.teacher, pair.student])
        arrow = f"{names[pair.teacher]} → " if pair.teacher else ""
        title = f"{arrow}{names[pair.student]} on {pair.dataset}"
        return {"pair": str(self.pairs.setdefault(title, len(self.pairs))), "title": title}

    def _mark(self, pair: PairTable, row: Row) -> plots.Mark:
        index, _ = self.methods.setdefault(row.label, (len(self.methods), row.family))
        attributes = {"pair": self._pair(pair)["pair"], "method": str(index), "family": row.family}
        return plots.Mark(row.label, index, attributes)

    def _cell(self, part: PagePart, pair: PairTable, row: Row, rows: pd.DataFrame) -> int:
        """The number of a line's cell: which trials it is of, and what its statistics are."""
        keys = []
        if row.kind == "teacher":
            for name in rows["teacher_id"].dropna().unique():
                folder = part.folder.parent / "teachers" / name
                self.behind.add_teacher(f"teachers/{name}", folder, read_result(folder))
                keys.append(f"teachers/{name}")
        else:
            planned = {cell.trial_id: cell for cell in part.cells if cell.label == row.label}
            own = rows[rows["label"] == row.label].drop_duplicates("trial_id")
            for found in own.to_dict("records"):
                record = {str(key): value for key, value in found.items()}
                name = record["trial_id"]
                keys.append(f"{part.folder.name}/{name}")
                self.behind.add(
                    keys[-1], record, TrialLocation(part.folder / name, planned[name], part.recipe, part.rows)
                )
        title = self._pair(pair)["title"]
        self.cells.append({"title": f"{name_of(row)}: {title}", "trials": keys, "says": list(_says(row, part.summary))})
        return len(self.cells) - 1

    def _line(self, pair: PairTable, row: Row, cell: int, baseline: str | None) -> dict[str, Any]:
        attributes = self._pair(pair)
        if row.kind == "method":
            attributes |= self._mark(pair, row).attributes
        elif row.kind == "student":
            attributes |= {"method": "", "family": ""}
        return {**attributes, "name": name_of(row), "row": row, "cell": cell, "baseline": row.label == baseline}

    def _grid(self, grid: Any, numbers: Mapping[int, int]) -> dict[str, Any]:
        names = short_names(name for column in grid.columns for name in (column.pair.teacher, column.pair.student))
        lines = [
            {
                "label": line.label,
                "family": family,
                "method": self.methods[line.label][0],
                "cells": [
                    {"cell": cell, "number": numbers[id(cell.row)] if cell else None, "pair": pair["pair"]}
                    for cell, pair in zip(line.cells, [self._pair(one.pair) for one in grid.columns], strict=True)
                ],
            }
            for family, of_family in grid.families
            for line in of_family
        ]
        columns = [
            {
                **self._pair(one.pair),
                "teacher": names[one.pair.teacher],
                "student": names[one.pair.student],
                "teacher_row": one.teacher,
                "student_row": one.student,
                "teacher_cell": numbers[id(one.teacher)] if one.teacher else None,
                "student_cell": numbers[id(one.student)] if one.student else None,
            }
            for one in grid.columns
        ]
        return {"dataset": grid.dataset, "columns": columns, "lines": lines}

    def _pictures(self, section: Section, part: PagePart, pair: PairTable, numbers: Mapping[int, int]) -> None:
        place = self._pair(pair)
        rows = [row for row in pair.rows if row.kind == "method"]
        curves, costs, memory = [], [], []
        for row in rows:
            mark = self._mark(pair, row)
            keys = self._keys(part, row)
            if row.comparable:
                curves.append((mark, [self.behind.details[key].curves.get("top1", ()) for key in keys]))
            if row.top1 is None:
                continue
            shape = {"hollow": not row.ranked, "square": row.family == "logits"}
            if row.seconds:
                costs.append(plots.Point(mark, row.seconds, row.top1, **shape))
            if row.memory:
                memory.append(plots.Point(mark, row.memory / 2**20, row.top1, **shape))
        top1 = "top-1 on the test set, %"
        drawn = {
            "curves": plots.curves(place["title"], curves),
            "costs": plots.scatter(f"Accuracy against cost: {place['title']}", costs, "seconds an epoch", top1, True),
            "memory": plots.scatter(f"Accuracy against memory: {place['title']}", memory, "MiB at most", top1, True),
        }
        for kind, picture in drawn.items():
            if picture is not None:
                section.pictures.setdefault(kind, []).append({**place, "svg": picture})
        compared = [row for row in rows if row.difference is not None]
        if compared:
            scale = plots.forest_scale([row.difference for row in compared if row.difference])
            lines = [
                {"svg": plots.forest_row(self._mark(pair, row), row.difference, scale), "row": row,
                 "cell": numbers[id(row)], **self._mark(pair, row).attributes}
                for row in compared
                if row.difference
            ]  # fmt: skip
            section.forests.append({**place, "axis": plots.forest_axis(scale), "lines": lines})
        for of_class in self._classes(part, pair, rows):
            section.pictures.setdefault("classes", []).append({**place, **of_class})

    def _keys(self, part: PagePart, row: Row) -> list[str]:
        """The trials that the line's means are of, by their names on the page."""
        return [f"{part.folder.name}/{name}" for name in row.trials]

    def _classes(self, part: PagePart, pair: PairTable, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
        """Changes by class against the baseline, over the seeds that both have and recorded by class."""

        def by_seed(row: Row) -> dict[int, tuple[float, ...]]:
            found = {}
            for key in self._keys(part, row):
                seed, classes = self.behind.seed(key), self.behind.details[key].classes
                if classes and seed is not None:
                    found[seed] = classes
            return found

        baseline = part.summary.baseline
        compared = next((by_seed(row) for row in rows if row.label == baseline and row.comparable), {})
        for row in rows:
            own = by_seed(row) if row.label != baseline and row.comparable else {}
            seeds = [seed for seed in own if len(own[seed]) == len(compared.get(seed, ()))]
            if seeds:
                changes = [
                    sum(own[seed][at] - compared[seed][at] for seed in seeds) / len(seeds)
                    for at in range(len(own[seeds[0]]))
                ]
                mark = self._mark(pair, row)
                yield {"svg": plots.classes(row.label, mark, changes), "caption": row.label, **mark.attributes}

    def _attacks(self, part: PagePart) -> Iterator[dict[str, Any]]:
        """Clean and robust accuracy of pairs under each attack, of trials that entered the table, beside published."""
        frame = attack_frame(part.folder, part.cells)
        for pair in part.summary.pairs:
            entered = {name for row in pair.rows for name in row.trials}
            own = frame[(frame["teacher"] == pair.teacher) & frame["trial_id"].isin(entered)]
            rows = {row.label: row for row in pair.rows}
            for table in summarise_attacks(own, part.summary.baseline or ""):
                known = [(line, rows.get(line.label)) for line in table.rows]
                lines = [(replace(line, difference=None) if row and not row.comparable else line, row)
                         for line, row in known]  # fmt: skip
                place = self._pair(pair) | {"published": published_lines(part.recipe, table)}
                yield {**place, "table": table, "lines": lines, "svg": self._robust(pair, rows, table)}

    def _robust(self, pair: PairTable, rows: Mapping[str, Row], table: AttackTable) -> Markup | None:
        last = list(table.columns)[-1]
        points = [
            plots.Point(self._mark(pair, rows[row.label]), row.values["clean"].mean, row.values[last])
            for row in table.rows
            if row.label in rows and rows[row.label].kind == "method"
        ]
        return plots.scatter(f"Clean against robust: {table.title}", points, "clean, %", f"{table.columns[last]}, %")


def name_of(row: Row) -> str:
    """What a line is called."""
    if row.kind == "teacher":
        return "teacher"
    if row.kind == "student":
        return "student alone" if row.label == "none" else f"student alone ({row.label})"
    return row.label


def _says(row: Row, summary: Summary) -> Iterator[str]:
    """A line's statistics in sentences."""
    planned = f"{row.done} of {count(row.planned, 'planned trial')} done"
    yield f"Top-1 after the last epoch: {spread(row.top1)} % ({planned})."
    if row.best is not None:
        yield f"Best epoch, selected on the test set: {spread(row.best)} %."
    difference, tested = row.difference, row.significance
    if difference is not None:
        interval = ""
        if difference.low is not None:
            interval = f", 95 % interval {signed(difference.low)} to {signed(difference.high)} (paired t)"
        yield f"Difference to {summary.baseline}: {signed(difference.mean)} points over {difference.n} seeds{interval}."
    if tested is not None:
        yield f"Differences by seed: {', '.join(signed(one) for one in tested.differences)}."
        for name, p, holm in (("paired t test", tested.p_t, tested.p_t_holm),
                              ("exact sign-flip test", tested.p_flip, tested.p_flip_holm)):  # fmt: skip
            if p is not None:
                corrected = "" if holm is None else f", after Holm's correction {spelt_p(holm)}"
                yield f"p of the {name}: {spelt_p(p)}{corrected}."
        if tested.bootstrap is not None:
            low, high = map(signed, tested.bootstrap)
            yield f"Bootstrap interval (BCa) of the difference: {low} to {high}."
    if row.published is not None:
        value = row.published
        published = spread(MeanAndStd(value.top1, value.std, 1))
        yield f"Published, and not measured here: {published} % ({value.source})."
    if row.note:
        yield f"Note: {row.note}."
