"""Reading of recipes: merging, overrides, and errors in one sentence."""

from pathlib import Path

import pytest
import yaml

from kd_bench.config.load import find_recipe, merge, packaged_recipes, read_recipe
from kd_bench.utils.errors import UserError

SMALL = {
    "dataset": "digits",
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": ["none", "kd"],
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def refused(source, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_recipe(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_published_recipe(recipe_file):
    recipe = read_recipe(recipe_file)
    assert recipe.name == "small"
    assert (recipe.epochs, recipe.batch_size, recipe.trials) == (240, 64, 3)
    assert recipe.optimizer.model_dump() == {
        "name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False,
    }  # fmt: skip
    assert recipe.methods["kd"].method == "kd"


def test_overrides(recipe_file):
    overrides = [
        "epochs=2",
        "optimizer.lr=1e-3",
        "methods.kd.temperature=2",
        "pairs.0.student=resnet20",
        "clip_norm=1.5",
    ]
    recipe = read_recipe(recipe_file, overrides, trials=5)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.clip_norm) == (2, 1e-3, 1.5)
    assert recipe.methods["kd"].hyperparameters == {"temperature": 2}
    assert recipe.pairs[0].student == "resnet20"
    assert recipe.pairs[0].teacher == "resnet14"
    assert recipe.all_seeds() == (0, 1, 2, 3, 4)


def test_a_mapping_of_teachers_is_merged(recipe_file):
    overrides = ["teachers.wrn_16_2.epochs=3", "teachers={wrn_16_2: {weights: wrn.pth}, resnet14: {seed: 1}}"]
    overrides += ["teachers.resnet14.tv_in1k.seeds=3"]
    teachers = read_recipe(recipe_file, overrides).teachers
    expected = {"wrn_16_2": {"epochs": 3, "weights": "wrn.pth"}, "resnet14": {"seed": 1}}
    assert teachers == expected | {"resnet14.tv_in1k": {"seeds": 3}}


def test_another_optimiser_replaces_the_settings_of_the_old(recipe_file):
    recipe = read_recipe(recipe_file, ["optimizer.momentum=0.5", "optimizer.name=adamw", "schedule.name=cosine"])
    assert recipe.optimizer.name == "adamw"
    assert recipe.schedule.name == "cosine"


def test_trials_shorten_a_list_of_seeds(recipe_file):
    assert read_recipe(recipe_file, ["seeds=[5, 6, 7]"], trials=2).all_seeds() == (5, 6)


def test_extends_merges_and_null_removes(tmp_path, recipe_file):
    child = tmp_path / "child.yaml"
    child.write_text("extends: small.yaml\nepochs: 3\nmethods:\n  kd: null\n  warm:\n    method: dkd\n    beta: 2\n")
    recipe = read_recipe(child)
    assert recipe.name == "child"
    assert list(recipe.methods) == ["none", "warm"]
    assert recipe.methods["warm"].model_dump() == {"method": "dkd", "hyperparameters": {"beta": 2}}


def test_a_row_keeps_its_method_when_only_its_settings_change(tmp_path, recipe_file):
    child = tmp_path / "child.yaml"
    child.write_text("extends: small.yaml\nmethods:\n  soft: {method: kd, temperature: 8}\n")
    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("extends: child.yaml\nmethods:\n  soft: {kd_weight: 1}\n")
    recipe = read_recipe(grandchild, ["methods={none: null, soft: {ce_weight: 0}}"])
    assert list(recipe.methods) == ["kd", "soft"]
    assert recipe.methods["soft"].method == "kd"
    assert recipe.methods["soft"].hyperparameters == {"temperature": 8, "kd_weight": 1, "ce_weight": 0}


def test_a_file_has_precedence_over_a_packaged_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").name == "demo.yaml"
    assert find_recipe("recipes/demo.yaml").is_file()
    (tmp_path / "demo").write_text(yaml.safe_dump(SMALL))
    assert find_recipe("demo") == Path("demo")


def test_every_packaged_recipe_reads():
    names = packaged_recipes()
    assert "demo" in names
    for name in names:
        assert read_recipe(name).description


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epoch=2", "no key of a recipe is called 'epoch'; did you mean 'epochs'?"),
        ("lr=1", "--set lr=1: no key of a recipe is called 'lr'; did you mean 'optimizer.lr'?"),
        ("LR=1", "did you mean 'optimizer.lr'?"),
        ("crop=1", "pairs, ... (see: kd-bench list settings)"),  # augment and second_view have one
        ("EPOCHS=1", "did you mean 'epochs'?"),
        ("seeds=3", "seeds: should be a list (it is 3); write trials: 3 for so many seeds, or seeds: [3] for this one"),
        ("epochs=many", "epochs: should be a whole number (it is 'many')"),
        ("epochs=0", "epochs: should be at least 1 (it is 0)"),
        ("epochs=2.5", "epochs: should be a whole number"),
        ("trials=true", "trials: should be a whole number (it is True)"),
        ("batch_size=1", "batch_size: should be at least 2"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean 'lr'?"),
        ("optimizer.name=sdg", "optimizer: 'sdg' is none of 'sgd', 'adamw', 'lamb', 'dot'; did you mean 'sgd'?"),
        ("optimizer.lr=.nan", "optimizer.lr: should be a finite number"),
        ("optimizer.lr=-1", "optimizer.lr: should be above 0 (it is -1)"),
        ("optimizer={nesterov: true, momentum: 0}", "optimizer: nesterov needs a momentum above 0"),
        ("optimizer={name: dot, delta: 0.1}", "optimizer: momentum + delta, the momentum of the distillation, must be"),
        (
            "optimizer={name: dot, momentum: 0.05}",
            "optimizer: delta must be at most momentum, which is 0.05; it is 0.075",
        ),
        ("schedule.milestones=[150, 0]", "schedule.milestones.1: should be at least 1 or above 0 (it is 0)"),
        ("schedule.gama=2", "schedule.gama: no such key; did you mean 'gamma'?"),
        ("augment.crop=-1", "augment.crop: should be at least 0"),
        ("augment.flip=perhaps", "augment.flip: should be true or false (it is 'perhaps')"),
        ("clip_norm=-1", "clip_norm: should be above 0 (it is -1)"),
        ("dataset.nam=x", "dataset.nam: no such key; did you mean 'name'?"),
        ("dataset.classes=1", "dataset.classes: should be at least 2"),
        ("dataset=7", "dataset: should be a mapping (it is 7)"),
        ("pairs=[]", "pairs: "),
        ("pairs.3.student=x", "'3' is not an index of a list of 1"),
        ("pairs.0.studen=x", "pairs.0.studen: no such key; did you mean 'student'?"),
        ("methods.kd=3", "methods.kd: should be a mapping (it is 3)"),
        ("methods=[1, 2]", "methods: should be names"),
        ("seeds=[1, -2]", "seeds.1: should be at least 0"),
        ("name=../x", "name: "),
        ("epochs", "--set epochs: should be KEY=VALUE"),
        ("epochs=[", "--set epochs=[: the value '[' is not valid YAML"),
    ],
)
def test_bad_values_are_refused(recipe_file, override, expected):
    assert expected in refused(recipe_file, override)


def test_missing_keys_are_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("dataset: digits\nmethods: [kd]\n")
    assert refused(path) == f"{path}: pairs: this key is missing"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"epochs: [1, 2\n", "is not valid YAML at line 2"),
        (b"- a\n- b\n", "is not a recipe"),
        (b"", "is not a recipe"),
        (b"1: 2\n", "1: no such key; there are: "),
        (b"lr: 2\n", "lr: no such key; did you mean 'optimizer.lr'?"),
        (b"extends: digit/base.yaml\n", "digit/base.yaml: there is no such recipe; did you mean 'digits/base.yaml'?"),
        (b"extends: dem\n", "extends: dem: there is no such recipe; did you mean 'demo'?"),
        (b"extends: smal.yaml\n", "smal.yaml: there is no such recipe; did you mean 'small.yaml'?"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"epochs: 1\nepochs: 2\n", "the key 'epochs' is given twice"),
        (b"a: !!python/object/apply:os.system [echo hi]\n", "is not valid YAML"),
        (b"extends: 3\n", "extends: should be the path"),
        (b"extends: nowhere.yaml\n", "extends: nowhere.yaml: there is no such recipe"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (tmp_path / "small.yaml").write_text("")
    message = refused(path)
    assert str(path) in message
    assert expected in message


def test_a_missing_recipe(tmp_path):
    assert refused(tmp_path / "none.yaml").endswith("there is no such recipe")
    assert "did you mean 'demo'" in refused("dem")


def test_extending_in_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "extends itself" in refused(tmp_path / "a.yaml")


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 5}, "d": None}) == {"a": {"b": 5, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
