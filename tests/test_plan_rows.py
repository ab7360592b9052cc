"""What a pair changes in the rows of a recipe: it leaves rows out, and trains them otherwise."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from kd_bench.cli.show_recipe import describe_recipe
from kd_bench.config.load import find_recipe, packaged_recipes, read_recipe
from kd_bench.config.training_notes import training_notes
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.utils.errors import UserError

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "cifar100",
    "trials": 1,
    "pairs": [
        {"teacher": "resnet32x4", "student": "resnet8x4"},
        {
            "teacher": "resnet32x4",
            "student": "shufflenet_v2",
            "training": {"optimizer": {"lr": 0.01}},
            "methods": {"long": {"temperature": 2, "training": {"epochs": 960, "optimizer": {"lr": 0.02}}}},
            "leave_out": ["dkd"],
        },
    ],
    "methods": {"kd": {}, "dkd": {}, "long": {"method": "kd", "training": {"epochs": 480, "optimizer": {"lr": 0.025}}}},
}


def planned(**changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes), "r")


def test_a_pair_leaves_rows_out() -> None:
    labels = [(cell.student.removeprefix("cifar_"), cell.label) for cell in planned()]
    assert labels == [
        ("resnet8x4", "kd"),
        ("resnet8x4", "dkd"),
        ("resnet8x4", "long"),
        ("shufflenet_v2", "kd"),
        ("shufflenet_v2", "long"),
    ]


def test_a_pair_trains_a_row_otherwise() -> None:
    trials = {(cell.student.removeprefix("cifar_"), cell.label): cell.trial for cell in planned()}
    settings = {
        key: (trial.epochs, trial.optimizer.lr, trial.method.hyperparameters["temperature"])
        for key, trial in trials.items()
        if key[1] != "dkd"
    }
    assert settings == {
        ("resnet8x4", "kd"): (240, 0.05, 4),
        ("resnet8x4", "long"): (480, 0.025, 4),
        ("shufflenet_v2", "kd"): (240, 0.01, 4),
        ("shufflenet_v2", "long"): (960, 0.02, 2),
    }


def test_null_takes_back_what_the_nearest_earlier_layer_sets() -> None:
    def average(pair: dict[str, Any], row: dict[str, Any], of_both: dict[str, Any]) -> float | None:
        pairs = [RECIPE["pairs"][0] | {"training": pair, "methods": {"kd": {"training": of_both}}}]
        return planned(ema=0.9, pairs=pairs, methods={"kd": {"training": row}})[0].trial.ema

    null: dict[str, Any] = {"ema": None}
    assert average({}, {}, {}) == 0.9
    assert average(null, {}, {}) is average({}, null, {}) is average({}, {}, null) is average(null, null, null) is None
    assert average({"ema": 0.8}, null, {}) == average({}, {"ema": 0.8}, null) == 0.9
    assert average({"ema": 0.8}, {"ema": 0.7}, null) == 0.8
    assert average(null, {"ema": 0.7}, {}) == 0.7


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"leave_out": ["dkdd"]}, "pairs.0.leave_out: no row is called 'dkdd'; did you mean 'dkd'?"),
        ({"leave_out": ["kd", "dkd", "long"]}, "pairs.0.leave_out: leaves no row to the pair"),
        ({"leave_out": "dkd"}, "pairs.0.leave_out: should be a list"),
        ({"methods": {"dkd": {"untuned": 3}}}, "pairs.0.methods.dkd: untuned: should be true or false or text"),
        ({"methods": {"dkd": {"training": 3}}}, "pairs.0.methods.dkd: training: should be a mapping"),
        ({"methods": {"dkd": {"training": {"epoch": 3}}}}, "epoch: no such key; did you mean 'epochs'?"),
    ],
)
def test_mistakes_are_sentences(pair: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(pairs=[RECIPE["pairs"][0] | pair])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_recipe_shows_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "dataset: digits\nepochs: 2\ntrials: 2\nmethods: {kd: {}, ttm: {untuned: the settings of A}}\n"
        "pairs:\n- {teacher: resnet20, student: resnet8, leave_out: [ttm]}\n"
        "- {teacher: resnet20, student: resnet14, methods: {kd: {untuned: true}}}\n"
        "published: [cifar100_pairs, cifar100_last_epoch]\n"
    )
    lines = [line.split() for line in describe_recipe(file, width=1000).splitlines()]
    assert any(line[:2] == ["leave_out", "ttm"] for line in lines)
    assert any(line[:2] == ["methods.kd.untuned", "true"] for line in lines)
    assert any(line[:5] == ["untuned", "the", "settings", "of", "A"] for line in lines)
    assert any(line[:3] == ["published", "cifar100_pairs,", "cifar100_last_epoch"] for line in lines)
    assert "These are 6 trials." in describe_recipe(file)


def test_the_label_of_a_row_wins_over_a_method_of_this_name() -> None:
    def selected(*only: str) -> set[str]:
        return {cell.label for cell in plan(read_recipe(RECIPE), "r.yaml", only)}

    assert selected("method=kd") == {"kd"}
    assert selected("method=kd,long") == {"kd", "long"}
    renamed = RECIPE | {
        "methods": {"short": {"method": "kd"}, "long": {"method": "kd"}, "dkd": {}},
        "baseline": "short",
    }
    assert {cell.label for cell in plan(read_recipe(renamed), "r.yaml", ["method=kd"])} == {"short", "long"}
    assert selected("student=shufflenet_v2", "method=kd") == {"kd"}
    with pytest.raises(UserError, match="no trial of this recipe matches all of these"):  # the pair leaves the row out
        selected("student=shufflenet_v2", "method=dkd")


PAIRS = [{"teacher": "resnet32x4", "student": "resnet8x4"}, {"teacher": "resnet32x4", "student": "shufflenet_v2"}]
WARMUPS = {"kd": {}, "dkd": {}, "none": {}, "ikl_kd": {"warmup_epochs": 15}, "slow": {"method": "ikl_kd", "tau": 4}}


def noted(recipe: Path, *overrides: str, only: tuple[str, ...] = ()) -> list[str]:
    content = read_recipe(recipe, overrides)
    return training_notes(content, plan(content, "r.yaml", only))


def test_a_warmup_that_is_longer_than_the_training_is_noted_once_for_each_row(tmp_path: Path) -> None:
    (recipe := tmp_path / "r.yaml").write_text(json.dumps(RECIPE | {"methods": WARMUPS, "epochs": 15, "pairs": PAIRS}))
    notes = [
        f"{label}: its warm-up takes 20 epochs and the training 15, so its terms never reach their full weight; "
        f"set methods.{label}.warmup_epochs, e.g. --set methods.{label}.warmup_epochs=1"
        for label in ("dkd", "slow")
    ]
    assert noted(recipe) == notes
    assert noted(recipe, only=("method=kd,slow",)) == notes[1:]
    assert noted(recipe, "epochs=20") == []
    shown = " ".join(describe_recipe(recipe).split())
    assert all(shown.count(note) == 1 for note in notes)


def test_the_setting_that_is_advised_for_a_warmup_changes_it(tmp_path: Path) -> None:
    rows = {"kd": {}, "v1.0 = dkd": {"method": "dkd"}, "ikl_kd": {}}
    pairs = [
        {**PAIRS[0], "methods": {"ikl_kd": {"warmup_epochs": 30}}},
        {**PAIRS[1], "methods": {"v1.0 = dkd": {"warmup_epochs": 40}}},
    ]
    (recipe := tmp_path / "r.yaml").write_text(json.dumps(RECIPE | {"methods": rows, "epochs": 12, "pairs": pairs}))
    notes = noted(recipe)
    assert [note.split(": ")[0] for note in notes] == ["v1.0 = dkd", "ikl_kd", "v1.0 = dkd", "ikl_kd"]
    assert [re.findall("takes ([0-9]+) ", note) for note in notes] == [["20"], ["30"], ["40"], ["20"]]
    options = [shlex.split(note)[-1] for note in notes]
    assert options[:2] == [
        'methods={"v1.0 = dkd": {"warmup_epochs": 1}}', "pairs.0.methods.ikl_kd.warmup_epochs=1"
    ]  # fmt: skip
    assert noted(recipe, *options) == []


def test_a_learning_rate_that_never_drops_is_noted_once_for_all_its_rows(tmp_path: Path) -> None:
    changes = {"methods": {"kd": {}, "dist": {"training": {"epochs": 40}}, "none": {}}, "epochs": 15}
    (recipe := tmp_path / "r.yaml").write_text(json.dumps(RECIPE | changes | {"pairs": PAIRS, "baseline": "kd"}))
    assert noted(recipe) == []
    (note,) = noted(recipe, "schedule.milestones=[30,60]")
    assert note.startswith(
        "kd, none: the learning rate never drops, because the training takes 15 epochs and schedule.milestones are "
        "30, 60; fractions of all epochs"
    )
    option = shlex.split(note)[-1]
    assert noted(recipe, "schedule.milestones=[30,60]", option) == []
    assert noted(recipe, "schedule.name=constant") == []


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_reach_the_full_weight_of_their_terms(name: str) -> None:
    assert "never reach their full weight" not in describe_recipe(find_recipe(name))
