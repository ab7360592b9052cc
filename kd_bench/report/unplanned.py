"""Trials that no recipe plans: a table of them from what their own ``trial.json`` say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from kd_bench.config.trial import PlannedTrial, Trial, canonical, identity
from kd_bench.report.footnotes import commonest, count
from kd_bench.report.protocol import explain, protocol, spelt
from kd_bench.report.results_frame import read_results
from kd_bench.report.table import ALONE, Summary, summarise

_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class FolderTrials:
    """What a folder holds, in the form of what a recipe plans.

    Attributes:
        cells: The trials, those without a teacher under every pair they serve.
        frame: As of ``read_results``, the protocol in the name of the data set where the folder has several.
        summary: The table.
        about: A sentence about where this comes from.
    """

    cells: tuple[PlannedTrial, ...]
    frame: pd.DataFrame
    summary: Summary
    about: str


def trial_ids(folder: Path) -> set[str]:
    """The trials that a folder of results holds, begun ones included."""
    try:
        names = [path.name for path in folder.iterdir() if _ID.fullmatch(path.name)]
    except OSError:
        return set()
    return {name for name in names if (folder / name / "trial.json").is_file()}


def trials_in_folder(folder: Path, ids: Iterable[str]) -> FolderTrials:
    """The trials ``ids`` of a folder as a table.

    A trial whose settings cannot be read, or are not those that its folder is named after, is left out and told. Trials
    of different protocols, or of one seed and different teachers of one name, come under different headings, as they
    can neither be averaged nor compared.
    """
    trials, damaged = _read(folder, sorted(ids))
    groups: dict[tuple[str, str, str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.method.name != ALONE:
            groups[_key(trial)].append(trial)
    for trial in trials:
        if trial.method.name == ALONE:
            title, own, _, student = _key(trial)
            serves = [key for key in groups if (key[0], key[1], key[3]) == (title, own, student)]
            for key in serves or [(title, own, "", student)]:
                groups[key].append(trial)
    of_pair: dict[tuple[str, str, str], list[Trial]] = defaultdict(list)
    for (title, _, teacher, student), members in groups.items():
        of_pair[title, teacher, student] += members
    usual = {pair: commonest_of(members) for pair, members in of_pair.items()}

    def order(key: tuple[str, str, str, str]) -> tuple[str, bool, str, str, str]:
        title, own, teacher, student = key
        return title, own != usual[title, teacher, student], teacher, student, own

    cells: list[PlannedTrial] = []
    titles: list[str] = []
    taken: set[tuple[str, str, str]] = set()
    for key in sorted(groups, key=order):
        title, own, teacher, student = key
        remarks = [explain(own, usual[title, teacher, student])] if own != usual[title, teacher, student] else []
        for remark, members in _split(groups[key]):
            heading = ": ".join([title, *remarks, *([remark] if remark else [])])
            while (heading, teacher, student) in taken:  # sentences name but a few of the differences
                heading += " (another)"
            taken.add((heading, teacher, student))
            labels = _labels(members)
            taught_by = next((one.teacher for one in members if one.teacher), None)
            lines = sorted(members, key=lambda one: (one.method.name != ALONE, labels[one.id], one.seed))
            cells += [PlannedTrial(one, labels[one.id], one.teacher or taught_by) for one in lines]
            titles += [heading] * len(lines)
    frame = read_results(folder, cells)
    frame["dataset"] = pd.Series(titles, dtype="string")
    summary = summarise(frame)
    about = "What these trials were meant to be compared with is not recorded, so none of them is called missing."
    if damaged:
        about += f" Left out: {count(len(damaged), 'folder')} whose trial.json is damaged ({', '.join(damaged[:5])})."
    return FolderTrials(tuple(cells), frame, summary, about)


def commonest_of(trials: Iterable[Trial]) -> str:
    """The protocol that most of the trials have."""
    return str(commonest(pd.Series([_protocol(trial) for trial in trials])))


def _read(folder: Path, ids: list[str]) -> tuple[list[Trial], list[str]]:
    trials, damaged = [], []
    for name in ids:
        try:
            trial = Trial.model_validate_json((folder / name / "trial.json").read_bytes())
        except (OSError, ValidationError, RecursionError):
            damaged.append(name)
            continue
        if identity(trial.settings()) == name:
            trials.append(trial)
        else:
            damaged.append(name)
    return trials, damaged


def _protocol(trial: Trial) -> str:
    class Cell:
        def __init__(self) -> None:
            self.trial = trial

    return protocol(Cell(), None)


def _key(trial: Trial) -> tuple[str, str, str, str]:
    return trial.dataset.title, _protocol(trial), trial.teacher.model if trial.teacher else "", trial.model


def _variant(trial: Trial) -> str:
    return canonical(trial.method.model_dump(mode="json"))


def _split(members: list[Trial]) -> list[tuple[str, list[Trial]]]:
    """The members by their teacher, where otherwise two would have one method and seed."""
    taken = [(_variant(one), one.seed) for one in members]
    if len(set(taken)) == len(taken):
        return [("", members)]
    teachers = dict.fromkeys(one.teacher.id for one in members if one.teacher)
    return [
        (f"teacher {name}", [one for one in members if one.teacher is None or one.teacher.id == name])
        for name in teachers
    ]


def _labels(members: list[Trial]) -> dict[str, str]:
    """The method's name, and the hyper-parameters in which variants of one method differ."""
    of_method: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for one in members:
        settings = {**one.method.hyperparameters, "source": (one.method.source or "")[:8]}
        of_method[one.method.name][_variant(one)] = settings
    labels = {}
    for one in members:
        variants = of_method[one.method.name]
        own = variants[_variant(one)]
        differ = [key for key in own if len({canonical(other.get(key)) for other in variants.values()}) > 1]
        inner = ", ".join(f"{key} {spelt(own[key])}" for key in differ)
        labels[one.id] = f"{one.method.name} ({inner})" if inner else one.method.name
    return labels
