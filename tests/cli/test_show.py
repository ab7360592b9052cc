"""``kd-bench show RECIPE``: every setting, and the file that it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kd_bench.cli import terminal
from kd_bench.cli.show import describe
from kd_bench.config.load import packaged_recipes, read_recipe
from kd_bench.trials.recipe_file import write_recipe
from kd_bench.utils.errors import UserError

BASE = {
    "dataset": {"name": "digits", "train_images": 100},
    "epochs": 7,
    "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.8},
    "schedule": {"name": "step", "milestones": [3], "gamma": 0.2},
    "methods": {"kd": {"temperature": 2}, "dkd": {}, "none": {}},
    "pairs": [{"teacher": "resnet14", "student": "resnet8", "training": {"optimizer": {"lr": 0.25}}}],
    "teacher_training": {"epochs": 9},
}
RECIPE = {
    "extends": "base.yaml",
    "description": "Two files.",
    "seeds": [4, 2],
    "epochs": 8,
    "optimizer": {"name": "adamw", "weight_decay": 0.1},
    "methods": {"dkd": None, "kd": {"kd_weight": 0.5}, "soft": {"method": "kd", "training": {"epochs": 3}}},
    "teachers": {"resnet14": {"batch_size": 32}},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("own.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return "own.yaml"


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_each_setting_has_its_source(recipe: str) -> None:
    text = describe(recipe, Path("runs"))
    assert text.splitlines()[:2] == ["own: Two files.", "own.yaml, which extends base.yaml"]
    shown = lines(text)
    for line in (
        ["dataset.name", "digits", "base.yaml"],
        ["dataset.train_images", "100", "base.yaml"],
        ["seeds", "4,", "2", "own.yaml"],
        ["baseline", "kd", "default"],
        ["resnet14", "->", "resnet8", "base.yaml"],
        ["training.optimizer.lr", "0.25", "base.yaml"],
        ["epochs", "8", "own.yaml"],
        ["batch_size", "64", "default"],
        ["schedule.milestones", "[3]", "base.yaml"],
        ["augment.crop", "2", "the", "data", "set"],
        ["teachers"],
        ["resnet14.batch_size", "32", "own.yaml"],
        ["soft", "kd", "own.yaml"],
        ["training.epochs", "3", "own.yaml"],
    ):
        assert line in shown, line
    # Another optimiser takes nothing over from the one that it replaces.
    assert ["optimizer.name", "adamw", "own.yaml"] in shown
    assert ["optimizer.lr", "0.001", "default"] in shown
    assert ["optimizer.weight_decay", "0.1", "own.yaml"] in shown
    assert not any(line and line[0] == "optimizer.momentum" for line in shown)
    assert "dkd" not in text
    assert "These are 6 trials." in text


def test_hyper_parameters_are_shown_with_their_defaults(recipe: str) -> None:
    shown = lines(describe(recipe, Path("runs")))
    start = shown.index(["kd"])
    assert shown[start + 1 : start + 4] == [
        ["ce_weight", "0.1", "default"],
        ["kd_weight", "0.5", "own.yaml"],
        ["temperature", "2.0", "base.yaml"],
    ]


def test_logit_settings_are_shown_where_they_are_on(recipe: str) -> None:
    rows = {"kd": {"standardise": True}, "soft": {"method": "kd", "standardise": False, "entropy_weights": 2}}
    Path(recipe).write_text(yaml.safe_dump(RECIPE | {"methods": rows}))
    shown = lines(describe(recipe, Path("runs")))
    start, other = shown.index(["kd"]), shown.index(["soft", "kd", "own.yaml"])
    assert shown[start + 4] == ["standardise", "true", "own.yaml"]
    assert shown[other + 4] == ["entropy_weights", "2.0", "own.yaml"]
    assert sum(line[:1] in (["standardise"], ["entropy_weights"]) for line in shown) == 2


def test_what_a_row_may_set_is_shown_with_the_method() -> None:
    assert describe("kd").endswith("\n\nA row of a recipe may set standardise and entropy_weights, too.")
    assert describe("dist").endswith("\n\nA row of a recipe may set standardise, too.")
    assert "A row of a recipe" not in describe("at")


def test_a_recipe_that_is_raw_is_its_file(recipe: str) -> None:
    assert describe(recipe, Path("runs"), raw=True) == f"# own.yaml\n{Path(recipe).read_text().rstrip()}"
    with pytest.raises(UserError, match="kd: there is no such recipe"):
        describe("kd", Path("runs"), raw=True)


def test_every_packaged_recipe_can_be_shown() -> None:
    for name in packaged_recipes():
        text = describe(name, Path("runs"))
        assert "\nmethods\n" in text and "optimizer.lr" in text, name


def test_an_invalid_recipe_is_a_sentence(recipe: str) -> None:
    Path("bad.yaml").write_text("extends: own.yaml\nepoch: 3\n")
    with pytest.raises(UserError, match=r"bad\.yaml: epoch: no such key; did you mean 'epochs'"):
        describe("bad.yaml", Path("runs"))
    Path("bad.yaml").write_text("extends: own.yaml\nmethods: {kd: {temprature: 3}}\n")
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        describe("bad.yaml", Path("runs"))
    Path("bad.yaml").write_text("extends: bad.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        describe("bad.yaml", Path("runs"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("pairs: [{teacher: resnet14, student: resnet8, training: {lr: 1}}]", "pairs.0.training: lr: no such key"),
        ("pairs: [{teacher: resnet14, student: resnet8, methods: {at: {}}}]", "pairs.0.methods: no row is called 'at'"),
        (f"pairs: [{', '.join(['{teacher: resnet14, student: resnet8}'] * 2)}]", "pairs.1: has the networks and"),
        ("methods: {kd: {lr: 0.1}}", "methods.kd: kd has no hyper-parameter 'lr'"),
        ("methods: {kd: {temperature: hot}}", "methods.kd: kd: temperature = 'hot' should be"),
        ("dataset: {classes: 20}", "dataset: classes must be a whole number from 2 to 10"),
        ("baseline: at", "baseline: no row is called 'at'"),
        ("teachers: {resnet20: {epochs: 3}}", "teachers: no teacher of this recipe is called 'resnet20'"),
    ],
)
def test_what_a_run_refuses_is_not_shown(recipe: str, change: str, sentence: str) -> None:
    Path("bad.yaml").write_text(f"extends: base.yaml\n{change}\n")
    with pytest.raises(UserError) as caught:
        describe("bad.yaml")
    assert str(caught.value).startswith(f"bad.yaml: {sentence}")


def test_weights_and_generated_images_may_be_missing(recipe: str) -> None:
    Path("own.yaml").write_text("extends: base.yaml\nteachers: {resnet14: {weights: no.pth}}\n")
    text = describe("own.yaml")
    assert "\nown.yaml: teachers.cifar_resnet14.weights: there is no file no.pth\n" in text
    assert "These are 9 trials." in text
    adversarial = "adversarial: {eps: 0.1, steps: 1, generated: {path: no.npz}}"
    rows = "methods: {kd: null, dkd: null, trades: {}}"
    Path("own.yaml").write_text(f"extends: base.yaml\n{adversarial}\n{rows}\nbaseline: trades\n")
    assert "These are 6 trials." in describe("own.yaml")


def test_a_trial_of_two_pairs_is_counted_once(recipe: str) -> None:
    pairs = [{"teacher": teacher, "student": "resnet8"} for teacher in ("resnet14", "resnet20")]
    Path("own.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", "pairs": pairs}))
    assert "These are 15 trials." in describe(
        "own.yaml"
    )  # kd and dkd of both pairs and the student alone, 3 seeds each


def test_a_name_in_upper_case_is_recognised() -> None:
    with pytest.raises(UserError, match="is called 'KD'; did you mean 'kd'"):
        describe("KD")
    with pytest.raises(UserError, match=r"\(see: kd-bench list --help\)$"):
        describe("qqqq")
    with pytest.raises(UserError, match=r"qqqq\.yaml: there is no such recipe"):
        describe("qqqq.yaml")


def test_the_recipe_of_a_comparison_is_found_by_its_name(recipe: str) -> None:
    write_recipe(read_recipe(recipe).model_copy(update={"name": "compare-x"}), Path("runs"), [])
    assert describe("compare-x", Path("runs")).startswith("compare-x: Two files.\nruns/compare-x/recipe.yaml\n")


def test_a_terminal_without_space_for_columns_has_a_line_for_each_setting() -> None:
    """The longest keys of this recipe and the names of its files leave 4 of 80 columns for the values."""
    name = "cifar100/all_methods"
    wide, narrow = (terminal.fit(describe(name, Path("runs"), width=width), width) for width in (120, 80))
    assert "    methods.reviewkd.review_weight               0.6" in wide
    assert "\n    methods.reviewkd.review_weight  0.6  cifar100/all_methods.yaml\n" in narrow
    assert "\ndataset.name  cifar100  cifar100/base.yaml\nseeds  0, 1, 2  cifar100/pairs_base.yaml\n" in narrow
