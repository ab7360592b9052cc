"""Summarises trials that no recipe plans, from their own ``trial.json``."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kd_bench.config.trial import PlannedTrial, Trial, canonical
from kd_bench.report.protocol import explain, format_value, protocol
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import ALONE, FolderResults
from kd_bench.trials.reader import read_trial, trial_settings
from kd_bench.utils.errors import UserError
from kd_bench.utils.text import count

_ID = re.compile("[0-9a-f]{16}")


class _Group(NamedTuple):
    """Trials that are averaged and compared with each other have these in common."""

    dataset: str
    protocol: str
    teacher: str
    student: str

    @property
    def pair(self) -> tuple[str, str, str]:
        """Dataset, teacher and student."""
        return self.dataset, self.teacher, self.student


def trial_ids(folder: Path) -> set[str]:
    """Returns the ids of the trials in a folder of results, including unfinished and damaged trials."""
    try:
        return {path.name for path in folder.iterdir() if _ID.fullmatch(path.name) and _is_trial(path)}
    except OSError:
        return set()


def _is_trial(path: Path) -> bool:
    """Whether settings or a result are in a folder; True also for a file or a link in the place of the folder."""
    return not path.is_dir() or any(os.path.lexists(path / name) for name in ("trial.json", "result.json"))


def summarise_unplanned(folder: Path, ids: Collection[str]) -> FolderResults:
    """Returns the results of some trials of a folder, with their table.

    A trial without a teacher has a cell in each pair with its student. If the folder has several protocols, they are in
    the names of the datasets.

    Trials whose settings cannot be read, or are not those of their folder's name, are left out and named. Trials of
    different protocols, or of one seed and different teachers of one name, have different headings, because they can
    neither be averaged nor compared.
    """
    left_out: dict[str, str] = {}
    readable = list(_read(folder, sorted(ids), left_out))
    cells: list[PlannedTrial] = []
    headings: list[str] = []
    used = set()
    for group, remarks, members in _groups(readable):
        for teacher, trials in _split_by_teacher(members):
            heading = ": ".join([group.dataset, *remarks, *teacher])
            while (heading, group.teacher, group.student) in used:  # a remark names only the first few differences
                heading += " (another)"
            used.add((heading, group.teacher, group.student))
            labels = _labels(trials)
            taught_by = next((trial.teacher for trial in trials if trial.teacher), None)
            for trial in sorted(trials, key=lambda trial: (trial.method.name != ALONE, labels[trial.id], trial.seed)):
                cells.append(PlannedTrial(trial, labels[trial.id], trial.teacher or taught_by))
                headings.append(heading)
    frame = read_results(folder, cells)
    frame["dataset"] = pd.Series(headings, dtype="string")
    about = "No recipe plans these trials, so none of them is called missing."
    if left_out:
        names = ", ".join(list(left_out)[:5])
        about += f" Left out: {count(len(left_out), 'folder')} whose trial.json is damaged ({names})."
    sentences = tuple(left_out.values())
    return FolderResults(folder.name, about, summarise(frame), frame, tuple(cells), folder, left_out=sentences)


def _read(folder: Path, ids: Iterable[str], left_out: dict[str, str]) -> Iterator[Trial]:
    """Yields the trials whose settings are not damaged. Adds a sentence for each other id to ``left_out``."""
    for name in ids:
        record = read_trial(folder / name)
        if record.settings is None:
            left_out[name] = record.advice if record.faults else f"{record.path / 'trial.json'}: is missing"
            continue
        try:
            settings = trial_settings(record)
        except UserError as error:
            left_out[name] = str(error)
            continue
        if isinstance(settings, Trial):
            yield settings
        else:
            left_out[name] = f"{record.path / 'trial.json'}: is that of a given teacher, and not of a student"


def _groups(trials: Iterable[Trial]) -> Iterator[tuple[_Group, list[str], list[Trial]]]:
    """Yields groups of trials in the order of the table, with a remark if the protocol is not the usual one of the
    pair.

    A trial without a teacher is a member of all groups with its dataset, protocol and student.
    """
    groups: dict[_Group, list[Trial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.method.name == ALONE):  # stable
        teacher = trial.teacher.model if trial.teacher else ""
        group = _Group(trial.dataset.title, protocol(trial, None), teacher, trial.model)
        if trial.method.name == ALONE:
            taught = [other for other in groups if other._replace(teacher=teacher) == group]
            for other in taught or [group]:
                groups[other].append(trial)
        else:
            groups[group].append(trial)
    protocols: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for group, members in groups.items():
        protocols[group.pair][group.protocol] += len(members)
    usual = {pair: counts.most_common(1)[0][0] for pair, counts in protocols.items()}
    unusual = {group: group.protocol != usual[group.pair] for group in groups}
    for group in sorted(groups, key=lambda group: (group.dataset, unusual[group], *group.pair, group.protocol)):
        yield group, [explain(group.protocol, usual[group.pair])] * unusual[group], groups[group]


def _split_by_teacher(trials: list[Trial]) -> list[tuple[list[str], list[Trial]]]:
    """Splits trials by their teacher, with a remark that names it, if two would otherwise have one method and seed.

    Teachers that differ in nothing but their seed stay together: students were crossed with them.
    """
    if len({(_variant(trial), trial.seed) for trial in trials}) == len(trials):
        return [([], trials)]
    kinds: dict[str, dict[str, None]] = defaultdict(dict)  # ids of teachers by their settings without a seed
    for teacher in (trial.teacher for trial in trials if trial.teacher):
        kinds[canonical({**teacher.settings(), "seed": None})][teacher.id] = None
    if len(kinds) == 1:
        return [([], trials)]
    return [
        (
            [f"teacher{'s' * (len(ids) > 1)} {', '.join(ids)}"],
            [trial for trial in trials if trial.teacher is None or trial.teacher.id in ids],
        )
        for ids in kinds.values()
    ]


def _variant(trial: Trial) -> str:
    """The method with its hyperparameters, as JSON."""
    return canonical(trial.method.model_dump(mode="json"))


def _labels(trials: Sequence[Trial]) -> dict[str, str]:
    """Labels by id: the method's title, with the hyperparameters in which variants of the method differ."""
    variants: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for trial in trials:
        settings = {**trial.method.hyperparameters, "source": (trial.method.source or "")[:8]}
        variants[trial.method.title][_variant(trial)] = settings
    names: dict[str, dict[str, str]] = {}
    for title, of_title in variants.items():
        names[title] = _names(title, of_title, format_value)
        if len(set(names[title].values())) < len(of_title):  # e.g. 4.0000001 and 4.0000002
            names[title] = _names(title, of_title, canonical)
    return {trial.id: names[trial.method.title][_variant(trial)] for trial in trials}


def _names(title: str, variants: Mapping[str, Mapping[str, Any]], text: Callable[[Any], str]) -> dict[str, str]:
    """Names of the variants of a method: its title, with the settings in which they differ, whose values ``text``
    prints."""
    names = {}
    for variant, settings in variants.items():
        differing = [key for key in settings if len({canonical(other.get(key)) for other in variants.values()}) > 1]
        inner = ", ".join(f"{key} {text(settings[key])}" for key in differing)
        names[variant] = f"{title} ({inner})" if inner else title
    return names
