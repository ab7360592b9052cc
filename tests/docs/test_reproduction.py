"""The part of docs/reproduce.md about what was reproduced: it is what its sources say, and trials are counted right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial
from tests.docs.commands import ROOT
from tests.trials.folders import finish


def _import(name: str) -> ModuleType:
    """Returns a module of docs/."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.insert(0, str(ROOT / "docs"))
    return importlib.import_module(name)


card_hours, reproduction = map(_import, ("card_hours", "reproduction"))

VGG = "`vgg13` to `mobilenet_v2`"


@pytest.fixture(scope="module")
def table6() -> list[PlannedTrial]:
    return card_hours.plan(["cifar100/table6"])["cifar100/table6"]


@pytest.fixture
def only_table6(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other recipes are left out, because planning takes time."""
    monkeypatch.setattr(card_hours, "RECIPES", {"cifar100/table6": ("cifar100/table6",)})


def of_vgg(table6: list[PlannedTrial], label: str, seed: int = 0) -> Trial:
    return next(cell.trial for cell in table6 if (cell.teacher, cell.label, cell.seed) == ("cifar_vgg13", label, seed))


def given(trial: Trial) -> Trial:
    """The trial with a teacher from a file."""
    teacher = PretrainedTeacher(dataset=trial.dataset, model=trial.teacher.model, weights="1" * 64)
    return Trial.model_validate_json(trial.model_copy(update={"teacher": teacher}).model_dump_json())


def keep(measured: Path, trial: Trial, top1: float, folder: str = "table6") -> None:
    finish(measured / folder / trial.id, trial, top1)
    if isinstance(trial.teacher, PretrainedTeacher):
        finish(measured / "teachers" / trial.teacher.id, trial.teacher, 74.3)


def test_the_page_is_what_its_sources_say() -> None:
    text = reproduction.PAGE.read_text(encoding="utf-8")
    assert reproduction.page(text) == text, "write it anew with: make docs"


def test_the_hours_are_of_the_planned_trials(table6: list[PlannedTrial]) -> None:
    costs = card_hours.read()
    assert set(costs) == set(card_hours.RECIPES)
    for title, names in card_hours.RECIPES.items():
        trials = {cell.trial_id: cell for cells in card_hours.plan(names).values() for cell in cells}
        part = reproduction.Part("", "", {title: tuple(trials.values())}, {}, title)
        assert min(reproduction.hours(part, part.missing, costs).values()) > 1, "count again: generate.py --hours"


@pytest.mark.usefixtures("only_table6")
def test_finished_trials_are_counted_and_stand_beside_published_numbers(
    tmp_path: Path, table6: list[PlannedTrial]
) -> None:
    before = {part.title: part for part in reproduction.parts(tmp_path)}[VGG]
    assert len(before.trials) == len(before.missing) == 27 and reproduction.numbers(before, tmp_path) == []
    for label, top1 in (("none", 64.9), ("kd", 67.1), ("dkd", 69.5)):
        trial = of_vgg(table6, label)
        keep(tmp_path, given(trial) if trial.teacher else trial, top1)
    other = given(of_vgg(table6, "kd", seed=1)).model_copy(update={"epochs": 100})
    keep(tmp_path, Trial.model_validate_json(other.model_dump_json()), 60.0)
    part = {part.title: part for part in reproduction.parts(tmp_path)}[VGG]
    assert len(part.missing) == 24, "a trial with fewer epochs is not one of them"
    assert reproduction.numbers(part, tmp_path) == [
        "`none` 64.90 (one seed, so no interval; published 64.60)",
        "`dkd` 69.50 (one seed, so no interval), best epoch 69.50 (published 69.71)",
        "`kd` 67.10 (one seed, so no interval; published 67.37)",
    ]
    costs = card_hours.read()
    rest, all_of_it = (reproduction.hours(part, missing, costs) for missing in (part.missing, before.missing))
    assert all(rest[card] < all_of_it[card] for card in card_hours.CARDS)


@pytest.mark.usefixtures("only_table6")
def test_three_seeds_have_an_interval(tmp_path: Path, table6: list[PlannedTrial]) -> None:
    for seed, top1 in enumerate((67.3, 67.4, 67.5)):
        keep(tmp_path, given(of_vgg(table6, "kd", seed)), top1)
    part = {part.title: part for part in reproduction.parts(tmp_path)}[VGG]
    assert reproduction.numbers(part, tmp_path) == ["`kd` 67.40 ± 0.10 (3 seeds; published 67.37, inside the interval)"]


def test_rows_with_fewer_seeds_are_counted_apart(table6: list[PlannedTrial]) -> None:
    cells = [cell for cell in table6 if cell.teacher == "cifar_vgg13" and cell.label in ("none", "kd", "dkd")]
    assert reproduction._rows(cells, 3) == "3"
    assert reproduction._rows([cell for cell in cells if cell.label != "dkd" or cell.seed == 0], 3) == (
        "2, and 1 with fewer seeds"
    )


def test_rows_are_counted_for_each_pair_if_their_numbers_differ(table6: list[PlannedTrial]) -> None:
    first = [cell for cell in table6 if cell.teacher == "cifar_vgg13" and cell.label in ("none", "kd", "dkd")]
    second = [cell for cell in table6 if cell.teacher == "cifar_resnet50" and cell.label in ("none", "kd")]
    assert {cell.student for cell in first} == {cell.student for cell in second}
    assert reproduction._rows([*first, *second], 3) == "3; 2"


@pytest.mark.usefixtures("only_table6")
def test_a_trained_teacher_must_have_the_settings_of_the_recipe(tmp_path: Path, table6: list[PlannedTrial]) -> None:
    trial = of_vgg(table6, "kd")
    assert isinstance(trial.teacher, Trial)
    short = trial.teacher.model_copy(update={"epochs": 100})
    changed = Trial.model_validate_json(trial.model_copy(update={"teacher": short}).model_dump_json())
    keep(tmp_path, changed, 67.0)
    keep(tmp_path, trial.teacher, 74.6, "teachers")
    parts = {part.title: part for part in reproduction.parts(tmp_path)}
    assert len(parts[VGG].missing) == 27
    assert len(parts["the four teachers"].missing) == 3
    assert reproduction.numbers(parts["the four teachers"], tmp_path) == [
        "`vgg13` 74.60 (one seed, so no interval; published 74.64)"
    ]


def test_a_page_without_a_place_for_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="should have the lines"):
        reproduction.page("# Reproduce the paper\n")
