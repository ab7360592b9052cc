"""The part of docs/reproduce.md that says how far the paper has been reproduced, made from results/measured/."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import card_hours

from kd_bench import api
from kd_bench.config.load import read_recipe
from kd_bench.config.network_names import short_name
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from kd_bench.estimate.gpus import load_gpus
from kd_bench.launch.run_recipe import PlannedRecipe
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summary import FolderResults, Published, SummaryRow
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.reader import read_trial, trial_settings

PAGE = Path(__file__).parent / "reproduce.md"
MEASURED = Path(__file__).parents[1] / "results" / "measured"

BEGIN = "<!-- Written by docs/generate.py from results/measured/ and docs/card_hours.json -->\n"
END = "<!-- End of what docs/generate.py writes -->\n"


@dataclass(frozen=True)
class Part:
    """A part of the paper's tables.

    Attributes:
        table: Its number in the paper; "-" for pairs that others have published.
        title: Its networks.
        cells: The planned trials by recipe.
        done: The finished trials of exactly these settings, by the planned trial's id.
        costs: Key of ``card_hours.RECIPES``.
    """

    table: str
    title: str
    cells: Mapping[str, Sequence[PlannedTrial]]
    done: Mapping[str, Trial]
    costs: str

    @cached_property
    def trials(self) -> dict[str, PlannedTrial]:
        """The planned trials by id, each once."""
        return {cell.trial_id: cell for cells in self.cells.values() for cell in cells}

    @property
    def missing(self) -> dict[str, PlannedTrial]:
        """The planned trials that are not finished, by id."""
        return {name: cell for name, cell in self.trials.items() if name not in self.done}


def parts(measured: Path = MEASURED) -> list[Part]:
    """Returns the parts of the paper, with what is finished of them in a results folder."""
    parts = []
    for costs, names in card_hours.RECIPES.items():
        planned = card_hours.plan(names)
        done = {cell: trial for name in names for cell, trial in _finished(name, planned[name], measured)}
        if costs == "cifar100/table6":
            (cells,) = planned.values()
            teachers = {cell.taught_by.id: _as_cell(cell.taught_by) for cell in cells if cell.taught_by}
            of_teachers = dict(_finished(TEACHERS, teachers.values(), measured))
            parts.append(Part("6", "the four teachers", {TEACHERS: tuple(teachers.values())}, of_teachers, costs))
            for pair in dict.fromkeys((cell.teacher, cell.student) for cell in cells):
                of_pair = [cell for cell in cells if (cell.teacher, cell.student) == pair]
                parts.append(Part("6", _pair(*pair), {names[0]: of_pair}, done, costs))
        else:
            table, title = _TITLES[costs]
            parts.append(Part(table, title, planned, done, costs))
    return parts


_TITLES = {
    "cifar100/other_pairs": ("-", "the eight other published pairs of CIFAR-100"),
    "imagenet/table8": ("8", "BEiT-Large to ResNet-50, four methods"),
    "robustness": ("7, 9 to 12", "adversarially trained networks (without their attacks)"),
}


def _as_cell(teacher: Trial | PretrainedTeacher) -> PlannedTrial:
    assert isinstance(teacher, Trial)
    return PlannedTrial(teacher, "teacher", None)


def _pair(teacher: str, student: str) -> str:
    names = (short_name(name) for name in (teacher, student) if name != "-")
    return " to ".join(f"`{name}`" for name in names)


def _finished(recipe: str, cells: Iterable[PlannedTrial], measured: Path) -> Iterator[tuple[str, Trial]]:
    """Yields the ids of planned trials, and the finished trials with their settings, whose teacher may be given."""
    folder = measured / (recipe if recipe == TEACHERS else read_recipe(recipe).name)
    trials = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        record = read_trial(path)
        trial = trial_settings(record) if record.verdict == "done" else None
        if isinstance(trial, Trial):
            trials[_key(trial)] = trial
    for cell in cells:
        trial = trials.get(_key(cell.trial))
        trained = trial is not None and isinstance(trial.teacher, Trial)
        if trial is not None and (not trained or trial.id == cell.trial_id):
            yield cell.trial_id, trial


def _key(trial: Trial) -> str:
    """Returns the settings of a trial, with no more than the network of its teacher, as text."""
    teacher = trial.teacher.model if trial.teacher else None
    return json.dumps(trial.settings() | {"teacher": teacher}, sort_keys=True)


def hours(part: Part, missing: Mapping[str, PlannedTrial], costs: card_hours.Cohorts) -> dict[str, float]:
    """Returns the hours of missing trials by card: those of one seed and teacher side by side, cohort after cohort."""
    cohorts = costs[part.costs]
    places = {
        (cohort["teacher"], model, label): (number, position)
        for number, cohort in enumerate(cohorts)
        for position, (model, label) in enumerate(cohort["members"], 1)
    }
    seconds = dict.fromkeys(card_hours.CARDS, 0.0)
    shared: set[tuple[int, int]] = set()
    for cell in missing.values():
        teacher = cell.trial.teacher.model if cell.trial.teacher else ""
        number, position = places[teacher, cell.trial.model, cell.label]
        for card in seconds:
            times = cohorts[number]["cards"][card]
            once = 0.0 if (number, cell.seed) in shared else times[0]
            seconds[card] += cell.trial.epochs * (times[position] + once)
        shared.add((number, cell.seed))
    return {card: value / 3600 for card, value in seconds.items()}


def numbers(part: Part, measured: Path = MEASURED) -> list[str]:
    """Returns the measured accuracies of a part with what was published under the same protocol, one text a row."""
    texts = []
    for name, cells in part.cells.items():
        finished = [
            replace(cell, trial=trial, taught_by=trial.teacher or cell.taught_by)
            for cell in cells
            if (trial := part.done.get(cell.trial_id))
        ]
        if not finished:
            continue
        recipe = read_recipe("cifar100/teachers" if name == TEACHERS else name)
        summary = api.table([PlannedRecipe(recipe, name, finished)], measured)
        texts += [text for pair in summary.pairs for row in pair.rows if (text := _row(row, pair.student))]
    return texts


def _row(row: SummaryRow, student: str) -> str:
    if row.kind == "teacher" or row.top1 is None:
        return ""
    name = short_name(student) if row.label == "teacher" else row.label
    text = f"`{name}` {row.top1} ({_seeds(row.top1)}; {_published(row.published)})"
    if row.published_best is None:
        return text
    if row.published is None:
        text = f"`{name}` {row.top1} ({_seeds(row.top1)})"
    return f"{text}, best epoch {row.best} ({_published(row.published_best)})"


def _seeds(measured: MeanAndStd) -> str:
    return "one seed, so no interval" if measured.n == 1 else f"{measured.n} seeds"


def _published(published: Published | None) -> str:
    if published is None:
        return "nothing published"
    position = {None: "", True: ", inside the interval", False: ", outside the interval"}[published.inside]
    return f"published {published.top1:.2f}{position}"


def section(measured: Path = MEASURED) -> str:
    """Returns the text between ``BEGIN`` and ``END``."""
    costs, gpus = card_hours.read(), load_gpus()
    cards = [gpus[name].title for name in card_hours.CARDS]
    lines = [f"| table | part | full budget | not yet | {' | '.join(f'hours, {card}' for card in cards)} |"]
    lines.append("|---" * (4 + len(cards)) + "|")
    counted: set[str] = set()
    totals = dict.fromkeys(card_hours.CARDS, 0.0)
    full: set[str] = set()
    details = []
    for part in parts(measured):
        missing = {name: cell for name, cell in part.missing.items() if name not in counted}
        counted |= set(missing)
        rest = hours(part, missing, costs)
        totals = {card: totals[card] + rest[card] for card in totals}
        done = len(part.trials) - len(part.missing)
        full |= {trial.id for trial in part.done.values()}
        times = " | ".join(f"{value:.0f}" if value >= 1 else f"{value:.1f}" for value in rest.values())
        lines.append(f"| {part.table} | {part.title} | {done} of {len(part.trials)} | {len(part.missing)} | {times} |")
        if texts := numbers(part, measured):
            details.append(f"* {part.title}: {', '.join(texts)}.")
    lines.append(f"| | all | | | {' | '.join(f'{value:.0f}' for value in totals.values())} |")
    shown = "\n".join(details) if details else "Nothing has been trained with the full budget yet."
    return "\n".join([*_HEAD, *lines, "", shown, "", *_SMALLER, *smaller(full, measured), ""])


_HEAD = [
    "Finished trainings with exactly the settings of the recipe (a teacher may be given as a file), the number of",
    "those that are missing, and the hours that one card would need for them, students of one teacher and seed side by",
    "side:",
    "",
]
_SMALLER = [
    "With smaller networks, fewer images or fewer epochs. The first column is the table whose methods were compared,",
    "and the commands print what is in `results/measured/`. Rows are counted for each pair of networks if the numbers",
    "differ:",
    "",
]


def smaller(full: set[str], measured: Path = MEASURED) -> list[str]:
    """Returns the table of all other measured trials, and a sentence about published numbers beside them.

    Args:
        full: Ids of the trials that have the full budget.
        measured: The results folder.
    """
    lines = [
        "| instead of table | networks | images | epochs | seeds | rows | clean top-1, % | command |",
        "|---" * 8 + "|",
    ]
    published = []
    for part in api.report_parts(None, None, measured):
        done = part.frame.loc[part.frame["status"] == "done", "trial_id"]
        cells = [cell for cell in part.cells if cell.trial_id in set(done) - full]
        groups: dict[tuple[str, str, int], list[PlannedTrial]] = defaultdict(list)
        for cell in cells:
            groups[cell.dataset, _pixels(cell.trial), cell.trial.epochs].append(cell)
        for (dataset, pixels, epochs), of_group in groups.items():
            pairs = dict.fromkeys(_pair(cell.teacher, cell.student) for cell in of_group)
            seeds = {cell.seed for cell in of_group}
            rows = [row for pair in part.summary.pairs for row in pair.rows if row.kind != "teacher" and row.top1]
            means = [
                row.top1.mean for row in rows if row.top1 and set(row.trials) & {cell.trial_id for cell in of_group}
            ]
            published += [f"`{row.label}`" for row in rows if row.published or row.published_best]
            lines.append(
                f"| {_table(part.cells)} | {', '.join(pairs)} | {dataset}{pixels} | {epochs} | {len(seeds)} | "
                f"{_rows(of_group, len(seeds))} | {min(means):.1f} to {max(means):.1f} | `{_command(part)}` |"
            )
    text = ", ".join(dict.fromkeys(published))
    sentence = f"Published with the same protocol: {text}." if text else _NOTHING_PUBLISHED
    return [*lines, "", sentence]


def _rows(cells: Iterable[PlannedTrial], seeds: int) -> str:
    """Returns the number of rows with that many seeds, and of those with fewer; of each pair, if they differ."""
    seeds_by_row: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        seeds_by_row[_pair(cell.teacher, cell.student)][cell.label].add(cell.seed)
    numbers = []
    for rows in seeds_by_row.values():
        complete = sum(len(of_row) == seeds for of_row in rows.values())
        incomplete = f", and {len(rows) - complete} with fewer seeds" if complete < len(rows) else ""
        numbers.append(f"{complete}{incomplete}")
    return numbers[0] if len(set(numbers)) == 1 else "; ".join(numbers)


_NOTHING_PUBLISHED = "Nothing was published with these protocols, so no published number stands beside these."


def _pixels(trial: Trial) -> str:
    size = trial.pipeline.size if trial.pipeline else trial.input.size
    return f", {size} pixels" if size else ""


def _table(cells: Sequence[PlannedTrial]) -> str:
    """Returns the number of the paper's table whose methods the trials have."""
    if any(cell.trial.adversarial for cell in cells):
        return "7"
    return "8" if any(cell.trial.pipeline for cell in cells) else "6"


def _command(part: FolderResults) -> str:
    is_named_by_folder = not part.recipe or Path(part.recipe).parent == part.folder  # it is found by the folder's name
    return f"kd-bench table {part.folder.name if is_named_by_folder else part.recipe} --out results/measured"


def page(text: str, measured: Path = MEASURED) -> str:
    """Returns the text of the page with a new section.

    Raises:
        ValueError: If the page has no place for it.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if not pattern.search(text):
        raise ValueError(f"{PAGE}: should have the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n{section(measured)}\n{END}", text)
