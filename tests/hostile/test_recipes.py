"""Recipes and settings that nobody means: each is refused in one sentence that names the key, or taken as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kd_bench.config.load import read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.plan import plan
from kd_bench.utils.errors import UserError, one_line
from tests.hostile.recipes import PATHS, VALID, Spoiled, spoiled_recipes

#: Words of pydantic, which a user must not see.
FOREIGN = ("Input should", "valid integer", "valid string", "valid dictionary", "valid array", "Field required")
FOREIGN += ("String should", "List should", "Tuple should", "Dictionary should", "Value error", "Unable to extract")


def planned(source: str | Path | dict[str, Any], overrides: tuple[str, ...] = (), trials: int | None = None) -> Recipe:
    recipe = read_recipe(source, overrides, trials)
    assert plan(recipe, "r.yaml")
    return recipe


def refused(source: str | Path | dict[str, Any], *overrides: str, trials: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        planned(source, overrides, trials)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_recipe(text: str | None = None, name: str = "r.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        content = {key: value for key, value in VALID.items() if key != "name"} | changes
        path.write_text(yaml.safe_dump(content, sort_keys=False) if text is None else text)
        return path

    return write_recipe


def test_the_recipe_that_the_others_are_made_of_is_valid() -> None:
    assert planned(VALID).epochs == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochs=", "--set epochs=: the value is missing; write null to go back to the default"),
        ("epochs= ", "the value is missing"),
        ("epochs=1:30", "epochs: should be a whole number (it is '1:30')"),
        ("epochs=1e23", "epochs: should be a whole number (it is 1e+23)"),
        ("epochs=100000000000000000000000", "epochs: should be at most 100,000 (it is 100000000000000000000000)"),
        ("epochs=100001", "epochs: should be at most 100,000"),
        ("epochs=3.0", "epochs: should be a whole number (it is 3.0); write 3"),
        ("epochs=1_000", "epochs: should be a whole number (it is '1_000'); write 1000"),
        ("epochs=010", "epochs=010: the value '010' line 1, column 1: 010 begins with a zero; write 10"),
        (f"epochs={'1' * 5000}", "this number has 5000 characters; 30 are allowed"),
        ("epochs=!!int abc", "the tag !!int is not allowed"),
        ("epochs=.inf", "epochs: should be a whole number (it is inf)"),
        ("epochs=2020-12-24", "epochs: should be a whole number (it is '2020-12-24')"),
        ("trials=2147483648", "trials: should be at most 10,000 (it is 2147483648)"),
        ("trials=-1", "trials: should be at least 1"),
        ("seeds=[1, 2, 1]", "seeds: 1 is there twice"),
        ("seeds=5", "seeds: should be a list (it is 5)"),
        ("batch_size=201", "batch_size: 201 is more than the 200 training images of digits"),
        (
            "dataset.train_images=16",
            "batch_size: 32 is more than the 16 training images of digits (16 training images)",
        ),
        ("dataset={name: cifar100, classes: 2, train_images: 20}", "batch_size: 32 is more than the 20 training"),
        ("batch_size=1048577", "batch_size: should be at most 1,048,576"),
        ("optimizer.lr=1e23", "optimizer.lr: should be at most 1,000,000,000 (it is 1e+23)"),
        ("optimizer.lr=.nan", "optimizer.lr: should be a finite number (it is nan)"),
        ("optimizer.lr=1e999", "optimizer.lr: should be a finite number (it is inf)"),
        ("optimizer.nesterov=yes", "optimizer.nesterov: should be true or false (it is 'yes'); write true"),
        ("optimizer=sgd", "optimizer: should be a mapping (it is 'sgd')"),
        ("optimizer.name=7", "optimizer: '7' is none of 'sgd', 'adamw', 'lamb'"),
        ("schedule.milestones=[1, x]", "schedule.milestones.1: should be a whole number or a number (it is 'x')"),
        ("schedule.milestones=5", "schedule.milestones: should be a list (it is 5)"),
        ("schedule.warmup_epochs=1e9", "schedule.warmup_epochs: should be a whole number"),
        ("compile=true", "compile: True is none of"),
        ("description=7", "description: should be text (it is 7)"),
        ("pairs=[]", "pairs: should be at least 1 entry long (it is [])"),
        ("pairs=7", "pairs: should be a list (it is 7)"),
        ("pairs.0=resnet8", "pairs.0: should be a mapping (it is 'resnet8')"),
        ("pairs.²=x", "'²' is not an index of a list of 1"),
        (f"pairs.{'9' * 5000}=x", "is not an index of a list of 1"),
        (f"{'.'.join(['optimizer'] * 40)}=1", "the key has 40 parts; no key of a recipe has as many"),
        ("methods=[kd, kd]", "methods: 'kd' is named twice; give one of them a label: LABEL: {method: kd}"),
        (f"methods.{'m' * 101}.method=kd", "should have at most 100 characters, and has 101"),
        ('methods={"a\\nb": {method: kd}}', "should be text that can be printed on one line"),
        ("extends=demo", "extends belongs in the recipe's file"),
        ("name=teachers", "name: 'teachers' is the folder of the trained teachers"),
        ("name=smoke", "name: is the folder of smoke runs in the results folder"),
        ("name=Replays", "name: is the folder of trainings that are repeated by kd-bench replay in the results folder"),
        ("name=LOGS", "name: is the folder of logs in the results folder"),
        ("name=attacks", "name: is the folder of attacks on files of weights"),
        ("name=evaluations", "name: is the folder of evaluations of files of weights"),
        ("name=con", "name: is a device on Windows"),
        ("name=NUL.tar.gz", "name: is a device on Windows"),
        ("name=a/b", "name: should be the name of a folder"),
        ("name=..", "name: should be the name of a folder"),
        ("name=a.", "name: should be the name of a folder"),
        ('name="a\\x1b[31m"', "name: should be the name of a folder"),
        ('name=""', "name: should be the name of a folder"),
        (f"name={'n' * 300}", "name: should have at most 100 characters, and has 300"),
        ("published=nope", "published: no file of published numbers is called 'nope'"),
        (f"published={'n' * 300}", "published: no file of published numbers is called"),
        ("baseline=kdd", "baseline: no row is called 'kdd'; did you mean 'kd'?"),
        ("dataset.size=100000000", "dataset.size: should be at most 4,096"),
        ("augment.own_source=x", "augment.own_source must be left out without augment.own"),
        ("teacher_training.weights=7", "should be a file, or: published (it is 7)"),
        (f"teacher_training.weights={'n' * 300}", "weights: there is no file nnn"),
        ("teacher_training.weights=~nosuchuser/x.pth", "weights: there is no file ~nosuchuser/x.pth"),
        ("teachers.resnet14.optimizer.lrr=1", "teachers.resnet14: optimizer.lrr: no such key"),
        (f"pairs.0.student={'n' * 300}.py:x", "there is no file nnn"),
        (f"methods.kd.method={'n' * 300}.py:X", "there is no file nnn"),
    ],
)
def test_settings_that_are_refused(write: Callable[..., Path], override: str, sentence: str) -> None:
    assert sentence in refused(write(), override)


@pytest.mark.parametrize("trials", [0, 10_001, 2147483648, 10**30])
def test_numbers_of_trials_that_are_refused(write: Callable[..., Path], trials: int) -> None:
    assert "trials: should be at " in refused(write(), trials=trials)


def test_more_trials_than_anybody_trains(write: Callable[..., Path]) -> None:
    methods = {f"kd{number}": {"method": "kd"} for number in range(11)}
    assert "1 pairs, 11 methods and 10000 seeds make 110,000 trials" in refused(write(methods=methods, trials=10_000))


def test_seeds_that_are_no_list_are_refused_with_trials_too(write: Callable[..., Path]) -> None:
    for seeds in (5, {"a": 1}, "abc"):
        assert "seeds: should be a list" in refused(write(seeds=seeds), trials=2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: !!int abc\n", "is not valid YAML at line 1, column 9: the tag !!int is not allowed"),
        ("name: r\nepochs: &x [*x]\n", "is not valid YAML at line 2, column 13: *x stands for a value that contains"),
        ("epochs: 1\nepochs: 2\n", "the key 'epochs' is given twice, first in line 1"),
        ("epochs:\n", "line 1, column 8: the value of 'epochs' is missing; write null to leave it out"),
        ("extends: ''\n", "extends: '': there is no such recipe"),
        ("extends: [demo]\n", "extends: should be the path or the name of a recipe (it is ['demo'])"),
        (f"extends: {'n' * 300}\n", "there is no such recipe"),
        ('extends: "a\\0b"\n', "there is no such recipe"),
    ],
)
def test_files_that_are_refused(write: Callable[..., Path], text: str, sentence: str) -> None:
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert sentence in message


def test_the_name_of_a_file_is_no_better_than_a_name(write: Callable[..., Path]) -> None:
    assert "name: 'teachers' is the folder of the trained teachers" in refused(write(name="teachers.yaml"))
    assert "it is the name of the recipe's file unless" in refused(write(name="my recipe.yaml"))
    assert read_recipe(write(name="teachers.yaml", methods=["none"], baseline="none")).name == "teachers"


def test_a_long_chain_of_recipes_is_refused(write: Callable[..., Path]) -> None:
    for number in range(400):
        write(f"extends: r{number + 1}.yaml\n", f"r{number}.yaml")
    assert "extends: this recipe is below more than 20 others" in refused(write("extends: r1.yaml\n", "r0.yaml"))


def test_a_recipe_without_methods_is_refused(write: Callable[..., Path]) -> None:
    assert "methods: should be at least 1 entry long" in refused(write(methods={}))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "is a folder; name a recipe's file" in refused(tmp_path)


def test_names_that_no_file_can_have_are_no_recipes() -> None:
    for name in ("n" * 300, "a\0b", ""):
        assert "there is no such recipe" in refused(name)


def test_content_from_python_that_is_no_recipe() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (loop, deep, {(1, 2): 3}, "\ud800"):
        message = refused({**VALID, "teacher_training": {"epochs": value}})
        assert message == "valid: should be made of mappings, lists, text, numbers, true, false and null"


def _accepted(model: Any, path: str) -> Any:
    """Returns the value that a recipe has at a path, as a file would have it."""
    for key in path.split("."):
        if isinstance(model, BaseModel):
            model = getattr(model, key)
        else:
            model = model[int(key)] if isinstance(model, (list, tuple)) else model[key]
    return model


def _agrees(accepted: Any, written: Any) -> bool:
    """Whether a setting is what was written. A mapping may leave out what has a default, and null asks for it."""
    if isinstance(accepted, BaseModel):
        accepted = {**accepted.model_dump(mode="json"), **{key: getattr(accepted, key) for key in written or ()}}
    if isinstance(written, dict):
        return all(value is None or _agrees(accepted.get(key), value) for key, value in written.items())
    if isinstance(written, list):
        return len(accepted) == len(written) and all(map(_agrees, accepted, written))
    return written is None or ((type(written) is bool) == (type(accepted) is bool) and accepted == written)


def _check_spoiled(spoiled: Spoiled, path: Path) -> None:
    """A spoiled recipe is refused in one sentence that names a spoiled key, or every spoiled value is in the recipe."""
    text = json.dumps(spoiled.content).replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")
    path.write_text(text)
    try:
        recipe = planned(path)
    except UserError as error:
        message = one_line(str(error))
        assert any(part in message for changed in spoiled.changes for part in changed.split(".")), message
        assert not any(words in message for words in FOREIGN), message
        assert len(message) < 1000
        return
    for changed, value in spoiled.changes.items():
        if value is not None:
            assert _agrees(_accepted(recipe, changed), value), (changed, value, _accepted(recipe, changed))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled=spoiled_recipes())
def test_a_spoiled_recipe_is_refused_or_taken_as_it_is(tmp_path: Path, spoiled: Spoiled) -> None:
    _check_spoiled(spoiled, tmp_path / "r.yaml")


@pytest.mark.slow
@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled=spoiled_recipes())
def test_two_thousand_spoiled_recipes(tmp_path: Path, spoiled: Spoiled) -> None:
    _check_spoiled(spoiled, tmp_path / "r.yaml")


OVERRIDES = st.tuples(
    st.sampled_from([*PATHS, "pairs.7.student", "pairs.x", "methods.kd.temperature", "a", ".", "optimizer."]),
    st.sampled_from(["=", "=", "=", "", " = ", "=="]),
    st.sampled_from(["", " ", "1", "0", "-1", "1e23", "1:30", "[", "{", "{}", "[]", "null", "true", "!!x", "*a", "&a"])
    | st.sampled_from(["'", '"', "a: b", "a\nb", "\t", "@", ".nan", "{a: {b: c}}", "[[1]]", "9" * 5000, "%", "#", "kd"])
    | st.text(max_size=10),
)


def _check_override(parts: tuple[str, str, str], recipe: Path) -> None:
    override = "".join(parts)
    try:
        planned(recipe, (override,))
    except UserError as error:
        message = one_line(str(error))
        assert any(part in message for part in parts[0].split(".")), message
        assert not any(words in message for words in FOREIGN), message
        assert len(message) < 1000


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=OVERRIDES)
def test_any_override_is_refused_or_taken(write: Callable[..., Path], parts: tuple[str, str, str]) -> None:
    _check_override(parts, write())


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=OVERRIDES)
def test_a_thousand_overrides(write: Callable[..., Path], parts: tuple[str, str, str]) -> None:
    _check_override(parts, write())
