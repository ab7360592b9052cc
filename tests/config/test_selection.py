"""``--only``: labels with commas, conditions that are repeated, and selections that are refused."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.selection import select
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.report.trial_data import training_command
from kd_bench.utils.errors import UserError

ROWS = {"none": {}, "kd": {}, "dkd": {}, "kd, T=2": {"method": "kd", "temperature": 2}, "kd,dkd": {"method": "dist"}}
RECIPE = {
    "name": "commas",
    "dataset": "digits",
    "trials": 2,
    "pairs": [
        {"teacher": "resnet14", "student": "resnet8"},
        {"teacher": "resnet20", "student": "resnet14", "leave_out": ["dkd"]},
    ],
    "methods": ROWS,
}


def planned(**changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes), "commas")


def labels(*only: str) -> list[str]:
    return list(dict.fromkeys(cell.label for cell in select(planned(), only)))


def test_a_label_with_a_comma_is_taken_whole() -> None:
    assert labels("method=kd, T=2") == ["kd, T=2"]
    assert labels("method=kd,dkd") == ["kd,dkd"]
    assert labels("method=dkd, kd") == ["kd", "dkd"]


def test_the_values_of_a_key_that_is_repeated_are_alternatives() -> None:
    assert labels("method=kd", "method=dkd") == ["kd", "dkd"]
    assert labels("method=kd, T=2", "student=resnet8", "method=kd") == ["kd", "kd, T=2"]
    assert labels(" method = kd,none") == ["none", "kd"]


def test_the_order_of_conditions_does_not_matter() -> None:
    cells = planned(teachers={"resnet14": {"seeds": [3, 4]}})
    conditions = ["method=none,kd", "teacher_seed=4", "student=resnet8"]
    chosen = [
        {(cell.label, cell.taught_by and cell.taught_by.id, cell.seed) for cell in select(cells, only)}
        for only in (conditions, conditions[::-1])
    ]
    (teacher,) = {cell.taught_by and cell.taught_by.id for cell in cells if cell.teacher_seed == 4}
    assert chosen[0] == chosen[1] == {(label, teacher, seed) for label in ("none", "kd") for seed in (0, 1)}


@pytest.mark.parametrize(
    ("only", "sentence"),
    [
        (["method= "], "--only method= : should be KEY=VALUE, e.g. method=kd,ikl_kd"),
        (["method=kd,"], "--only method=kd,: a value is lacking; commas stand between values, e.g. method=kd,ikl_kd"),
        (["method=kd,kdd"], "--only method=kd,kdd: no method of this recipe is called 'kdd'; did you mean 'kd'?"),
        (
            ["student=resnet14", "method=dkd"],
            "--only student=resnet14 --only method=dkd: no trial of this recipe matches all of these",
        ),
    ],
)
def test_selections_that_are_refused(only: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        select(planned(), only)
    assert str(caught.value) == sentence


def test_the_command_that_trains_a_trial_again_selects_only_this_one() -> None:
    for cell in planned():
        words = shlex.split(training_command(cell, "commas.yaml"))
        only = [value for option, value in pairwise(words) if option == "--only"]
        assert [selected_cell.trial_id for selected_cell in select(planned(), only)] == [cell.trial_id]
