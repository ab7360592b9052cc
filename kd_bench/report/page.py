"""Builds the report: one HTML page that fetches nothing. Text from files is escaped and never becomes markup."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from kd_bench.report import class_plots, corruption_plot, page_classes, palette, plots
from kd_bench.report.attack_table import summarise_attacks, trial_evaluations
from kd_bench.report.column_cells import column_text
from kd_bench.report.columns import COLUMNS
from kd_bench.report.crossed_notes import freedom_text, split_rows
from kd_bench.report.palette import Look
from kd_bench.report.paper_layout import paper_tables, short_names
from kd_bench.report.published_robustness import published_cells
from kd_bench.report.render import DASH
from kd_bench.report.results_frame import read_result, teacher_name
from kd_bench.report.significance import EXACT, format_p, format_test
from kd_bench.report.summary import FolderResults, PairTable, SummaryRow
from kd_bench.report.summary_text import format_seconds, format_signed
from kd_bench.report.trial_data import PageTrials, script, training_command
from kd_bench.utils.text import count

if TYPE_CHECKING:
    import pandas as pd


def page(results: Sequence[FolderResults]) -> str:
    """Returns the page with the results, in their order, as text that UTF-8 can encode."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("kd_bench.report")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"spread": lambda value: str(value or DASH), "p": format_p, "signed": signed}
    templates.filters |= {"test": format_test, "seconds": format_seconds}
    code, style = (loader.get_source(templates, name)[0] for name in ("report.js", "report.css"))
    # without white space at the ends, which the Nu validator leaves out of its hashes
    code, style = code.strip(), f"{palette.style()}{style}".strip()
    builder = _PageBuilder(
        palette.looks(row.label for part in results for row in part.summary.rows if row.kind == "method")
    )
    sections = [builder.section(folder_results) for folder_results in results]
    statuses = {row["trial_id"]: row["status"] for part in results for row in part.frame.to_dict("records")}
    done = sum(status == "done" for status in statuses.values())
    data = script({"cells": builder.cells, **builder.trials.data()})
    text = templates.get_template("report.html").render(
        sections=sections,
        attributes=builder.attributes,
        cell_number=builder.cell_number,
        paper_tables=paper_tables,
        short_names=short_names,
        pairs=builder.pairs,
        methods=builder.methods,
        families=sorted({family for _, family in builder.methods.values() if family}),
        looks=builder.looks,
        shades=class_plots.SHADES,
        columns=COLUMNS,
        column_text=column_text,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=metadata.version("kd-bench"),
        counts=f"{done} of {count(len(statuses), 'trial')} done",
        code=Markup(code),
        style=Markup(style),
        unique=_Names().unique,
        code_hash=_hash(code),
        data_hash=_hash(data),  # browsers do not ask for it, but the Nu validator does
        style_hash=_hash(style),
        data=Markup(data),
    )
    return text.encode("utf-8", "replace").decode()


def _hash(text: str) -> str:
    """The hash by which a content security policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Names:
    """Makes the names of the page's regions unique."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        """Returns a name with a number behind it if the page has it already."""
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name} ({self._counts[name]})"


def signed(value: float) -> str:
    """Returns a number with its sign, as in ``+1.20``, with a minus sign as wide as the plus sign."""
    return format_signed(value).replace("-", "−")


class _PageBuilder:
    """Builds sections, and numbers the pairs, methods and cells of the whole page.

    Args:
        looks: The looks of the methods by label.

    Attributes:
        looks: The same.
        trials: The trials behind all numbers.
        pairs: Number of each pair by its title.
        methods: Number and family of each method by its label.
        cells: Title, sentences and trials behind each row of a table.
    """

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self.looks = looks
        self.trials = PageTrials()
        self.pairs: dict[str, int] = {}
        self.methods: dict[str, tuple[int, str]] = {}
        self.cells: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}  # by id() of the row
        self._trials_behind: dict[int, list[str]] = {}  # keys of the trials behind a row's means, by id() of the row

    def section(self, results: FolderResults) -> dict[str, Any]:
        """Returns the plots and robustness tables of one recipe or folder, as the template needs them."""
        figures: dict[str, list[dict[str, Any]]] = {}
        forests: list[dict[str, Any]] = []
        classes: list[dict[str, Any]] = []
        frames = dict(iter(results.frame.groupby(["dataset", "teacher", "student"], sort=False)))
        for pair in results.summary.pairs:
            for row in pair.rows:
                self._add_cell(results, pair, row, frames[pair.dataset, pair.teacher, pair.student])
            for kind, figure in self._figures(results, pair):
                figures.setdefault(kind, []).append({**self.attributes(pair), **figure})
            forests += self._forests(pair)
            classes += self._classes(pair)
        attacks = list(self._attacks(results))
        splits = [
            {"pair": pair, "rows": rows, "freedom": freedom_text(rows)}
            for pair in results.summary.pairs
            if (rows := split_rows(pair))
        ]
        return {"results": results, "plots": figures, "forests": forests, "splits": splits, "classes": classes,
                "attacks": attacks}  # fmt: skip

    def attributes(self, pair: PairTable, row: SummaryRow | None = None) -> dict[str, Any]:
        """Returns title and number of a pair, and number and family of a row's method, for the page's filters."""
        names = short_names([pair.teacher, pair.student])
        arrow = f"{names[pair.teacher]} → " if pair.teacher else ""
        title = f"{arrow}{names[pair.student]} on {pair.dataset}"
        attributes = {"title": title, "pair": str(self.pairs.setdefault(title, len(self.pairs)))}
        if row is None:
            return attributes
        if row.kind != "method":
            return attributes | {"method": "", "family": ""}
        number, _ = self.methods.setdefault(row.label, (len(self.methods), row.family))
        return attributes | {"method": str(number), "family": row.family}

    def cell_number(self, row: SummaryRow) -> int:
        """Returns the number of a row's cell."""
        return self._numbers[id(row)]

    def _mark(self, pair: PairTable, row: SummaryRow) -> plots.Mark:
        attributes = self.attributes(pair, row)
        del attributes["title"]
        look = self.looks[row.label] if row.kind == "method" else palette.STUDENT
        return plots.Mark(row.name, look, attributes)

    def _add_cell(self, results: FolderResults, pair: PairTable, row: SummaryRow, frame: pd.DataFrame) -> None:
        """Adds the cell of a row, with its statistics and trials."""
        keys = []
        if row.kind == "teacher":
            for name in frame["teacher_id"].dropna().unique():
                keys.append(f"teachers/{name}")
                folder = results.folder.parent / "teachers" / name
                self.trials.add_teacher(keys[-1], read_result(folder), folder)
        else:
            planned = {cell.trial_id: cell for cell in results.cells if cell.label == row.label}
            trials = frame[frame["label"] == row.label].drop_duplicates("trial_id")
            for record in trials.to_dict("records"):
                cell, recipe = planned[record["trial_id"]], results.recipe
                keys.append(f"{results.folder.name}/{cell.trial_id}")
                command = None
                if recipe:
                    command = training_command(
                        cell, recipe, results.methods, pair.crossed, results.trials, results.overrides
                    )
                self.trials.add(keys[-1], record, results.folder / cell.trial_id, cell, command, pair.crossed)
        self._numbers[id(row)] = len(self.cells)
        self._trials_behind[id(row)] = keys if row.kind == "teacher" else _keys(results, row)
        sentences = list(_sentences(pair, row, results.summary.baseline_name))
        self.cells.append({"title": f"{row.name}: {self.attributes(pair)['title']}", "trials": keys, "says": sentences})

    def _figures(self, results: FolderResults, pair: PairTable) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields learning curves, accuracy against cost, memory and latency, and changes by class, with their kinds."""
        title = self.attributes(pair)["title"]
        rows = [row for row in pair.rows if row.kind != "teacher"]
        top1, loss, costs, memory, latencies = [], [], [], [], []
        captions: dict[str, dict[str, str]] = {}
        for row in rows:
            mark = self._mark(pair, row)
            if row.comparable:
                curves = [self.trials.details[key].curves for key in _keys(results, row)]
                top1.append((mark, [curve.get("top1", ()) for curve in curves]))
                loss.append((mark, [curve.get("train_loss", ()) for curve in curves]))
            if row.top1 is None:
                continue
            hollow = not (row.complete and row.comparable)
            shape = {"hollow": hollow, "square": row.family == "logits"}
            if row.seconds:
                costs.append(plots.Point(mark, row.seconds, row.top1, **shape))
            if row.memory:
                memory.append(plots.Point(mark, row.memory / 2**20, row.top1, **shape))
            latency = row.columns.get("latency")
            if latency is not None and latency.value is not None and not latency.marked:
                latencies.append(plots.Point(mark, latency.value.mean, row.top1, **shape))
                captions["latency"] = {"caption": latency.protocol or ""}  # the machine, the same for all of them
        teacher = pair.first("teacher")
        drawn = {
            "curves": plots.curves(title, top1, teacher.top1.mean if teacher and teacher.top1 else None),
            "costs": plots.scatter(f"Accuracy against cost: {title}", costs, "seconds an epoch"),
            "memory": plots.scatter(f"Accuracy against memory: {title}", memory, "MiB at most"),
            "latency": plots.scatter(f"Accuracy against latency: {title}", latencies, "milliseconds an image"),
        }
        for kind, plot in drawn.items():
            if plot is not None:
                more = plots.losses(title, loss) if kind == "curves" else None
                yield kind, {"svg": plot, "more": more, **captions.get(kind, {})}
        yield from (("corruptions", figure) for figure in self._corruptions(pair))
        yield from (("classes", figure) for figure in self._changes(results, pair))

    def _corruptions(self, pair: PairTable) -> Iterator[dict[str, Any]]:
        """Yields the heat map of the rows that were evaluated on corrupted images, if there are any."""
        heat_rows = [(row, values) for row in pair.rows if (values := corruption_plot.values_of(row)) is not None]
        lines = [corruption_plot.HeatMapLine(self._mark(pair, row), values) for row, (values, _) in heat_rows]
        plot = corruption_plot.heat_map(self.attributes(pair)["title"], lines)
        if plot is not None:
            yield {"svg": plot, "more": None, "caption": heat_rows[0][1][1]}  # the protocol, the same for all rows

    def _changes(self, results: FolderResults, pair: PairTable) -> Iterator[dict[str, Any]]:
        """Yields the plots of the changes by class."""
        trials = {
            row.label: dict(zip(row.cells, (self.trials.details[key] for key in _keys(results, row)), strict=True))
            for row in pair.rows
            if row.kind == "method"
        }
        for row, points, names in page_classes.changes(pair, results.summary.baseline, trials):
            plot = class_plots.changes(row.label, self._mark(pair, row), points, names)
            yield {**self.attributes(pair, row), "svg": plot, "caption": row.label, "more": None}

    def _classes(self, pair: PairTable) -> Iterator[dict[str, Any]]:
        """Yields accuracies by class and confusion matrices, if there are any."""
        title = self.attributes(pair)["title"]
        rows = [(row, [self.trials.details[key] for key in self._trials_behind[id(row)]]) for row in pair.rows]
        table = page_classes.class_table([(row, trials) for row, trials in rows if row.comparable])
        if table is not None:
            confusions = [
                (confusion, self.attributes(pair, confusion.row)) for confusion in page_classes.confusions(title, rows)
            ]
            yield {"pair": pair, "table": table, "confusions": confusions}

    def _forests(self, pair: PairTable) -> Iterator[dict[str, Any]]:
        """Yields the differences to the baseline with their intervals, if there are any."""
        rows = [(row, row.difference) for row in pair.rows if row.kind == "method" and row.difference is not None]
        if rows:
            scale = plots.forest_scale([difference for _, difference in rows])
            lines = [(row, plots.forest_row(self._mark(pair, row), difference, scale)) for row, difference in rows]
            yield {"pair": pair, "axis": plots.forest_axis(scale), "rows": lines}

    def _attacks(self, results: FolderResults) -> Iterator[dict[str, Any]]:
        """Clean and robust accuracy under each attack, of the trials in the table, beside published values."""
        evaluations = trial_evaluations(results.folder, results.cells)
        for pair in results.summary.pairs:
            rows = {row.label: row for row in pair.rows}
            keys = {(pair.teacher, name) for row in pair.rows for name in row.trials}
            attacked = [item for item in evaluations if (teacher_name(item[0]), item[0].trial_id) in keys]
            for table in summarise_attacks(attacked, results.summary.baseline or "", results.summary.incomparable):
                lines, points = [], []
                last = list(table.columns)[-1]
                for line in table.rows:
                    row = rows.get(line.label)
                    lines.append((line, row))
                    if row and row.kind == "method":
                        points.append(plots.Point(self._mark(pair, row), line.values["clean"].mean, line.values[last]))
                title, y_title = f"Clean against robust: {table.title}", f"{table.columns[last]}, %"
                plot = plots.scatter(title, points, "clean, %", y_title, cost=False)
                published, notes = published_cells(results.recipe, table)
                notes = [*table.notes, *notes]
                yield {"pair": pair, "table": table, "rows": lines, "published": published, "notes": notes, "svg": plot}


def _keys(results: FolderResults, row: SummaryRow) -> list[str]:
    """The keys on the page of the trials behind a row's means."""
    return [f"{results.folder.name}/{name}" for name in row.trials]


def _sentences(pair: PairTable, row: SummaryRow, baseline: str | None) -> Iterator[str]:
    """Yields the statistics of a row in sentences."""
    planned = f"{row.done} of {count(row.planned, 'planned trial')} done"
    crossing = row.top1.crossing if row.top1 else None
    over = f"over {crossing.text}, " if crossing else ""
    yield f"Top-1 after the last epoch: {row.top1 or DASH} % ({over}{planned})."
    if crossing and crossing.stds:
        teacher, seed, residual = (f"{value:.2f}" for value in crossing.stds)
        yield f"Spread: {teacher} points due to the teacher, {seed} to the student's seed, {residual} the residual."
    if row.best is not None:
        yield f"Best epoch, selected on the test set: {row.best} %."
    difference, tests = row.difference, pair.significance.get(row.label)
    if difference is not None:
        interval = ""
        if difference.low is not None and difference.high is not None:
            interval = f", 95 % interval {signed(difference.low)} to {signed(difference.high)} ({difference.test})"
        yield f"Difference to {baseline}: {signed(difference.mean)} points over {difference.over}{interval}."
    if tests is not None:
        crossed = difference is not None and difference.crossing is not None
        by = "by teacher and seed" if crossed else "by seed"
        yield f"Differences {by}: {', '.join(map(signed, tests.differences))}."
        flips = "exact sign-flip test" if len(tests.differences) <= EXACT else "sign-flip test with random signs"
        for name, p, holm in ((f"{difference.test if difference else 'paired t'} test", tests.p_t, tests.p_t_holm),
                              (flips, tests.p_flip, tests.p_flip_holm)):  # fmt: skip
            if p is not None:
                corrected = "" if holm is None else f", after Holm's correction {format_p(holm)}"
                yield f"p of the {name}: {format_p(p)}{corrected}."
        if tests.bootstrap is not None:
            low, high = map(signed, tests.bootstrap)
            yield f"Bootstrap interval (BCa) of the difference: {low} to {high}."
    for published in filter(None, (row.published, row.published_best)):
        epoch = {"last": "last epoch", "best": "best epoch on the test set", "unknown": "epoch not stated"}
        yield f"Published, and not measured here: {published.value} % ({published.source}, {epoch[published.reports]})."
    if row.untuned:
        yield "Untuned: no hyper-parameters of the method are published for this pair."
    if row.note:
        yield f"Note: {row.note}."
