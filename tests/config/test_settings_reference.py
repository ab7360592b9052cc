"""The description of every setting: no field is left out, and each has values, a default and a meaning."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Interval
from pydantic import BaseModel, Field, TypeAdapter
from pydantic.fields import FieldInfo

from kd_bench.config import adversarial, data, load, optimizer, recipe, teacher_start, trial, type_words
from kd_bench.config import settings_reference as reference
from kd_bench.config.base import Settings, Sha256, added_field
from kd_bench.config.recipe import MethodEntry
from kd_bench.config.settings_reference import FileKeys, Setting, TeacherKeys
from kd_bench.config.teacher_seeds import pop_seeds
from kd_bench.config.trial import Training
from kd_bench.config.type_words import allowed, default
from kd_bench.config.yaml_reader import parse_yaml
from kd_bench.utils.signatures import arguments_in

MODULES = (adversarial, data, optimizer, recipe, teacher_start, trial, reference)
#: Models of what a recipe expands to.
OF_TRIALS = {trial.Trial, trial.PretrainedTeacher, trial.MethodSettings, trial.IdentifiedSettings}


def _models() -> Iterator[type[BaseModel]]:
    """Every model of a recipe, whether or not another one names it."""
    for module in MODULES:
        for value in vars(module).values():
            is_model = isinstance(value, type) and issubclass(value, Settings)
            if is_model and value.__module__ == module.__name__ and value not in OF_TRIALS:
                yield value


MODELS = sorted(_models(), key=lambda model: model.__name__)
FIELDS = [(model, name) for model in MODELS for name in model.model_fields if name in vars(model)["__annotations__"]]


def _kind(model: type[BaseModel]) -> str:
    """The value by which the block's name selects a model."""
    name = model.model_fields.get("name")
    return get_args(name.annotation)[0] if name is not None and get_origin(name.annotation) is Literal else ""


def _described(model: type[BaseModel], name: str) -> list[Setting]:
    """The settings that say of a key what the model's docstring says of the field."""
    kind, meaning = _kind(model), reference.meanings(model).get(name, "")
    is_selector = bool(kind) and name == "name"
    return [
        setting
        for setting in reference.all_settings()
        if setting.key.rpartition(".")[2] == name and setting.meaning == meaning
        if (f"``{kind}``" in setting.allowed if is_selector else setting.kind == kind)
    ]


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[f"{model.__name__}.{name}" for model, name in FIELDS])
def test_every_field_of_every_model_has_values_a_default_and_a_meaning(model: type[BaseModel], name: str) -> None:
    (setting,) = _described(model, name)
    assert setting.meaning.endswith("."), f"the docstring of {model.__name__} should say under Attributes: what it is"
    assert setting.allowed and setting.default
    assert "None" not in setting.meaning


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_docstrings_describe_no_field_that_there_is_not(model: type[BaseModel]) -> None:
    assert set(arguments_in(model.__doc__ or "", "Attributes")) <= set(model.model_fields)


def test_a_field_without_a_line_in_the_docstring_has_no_meaning() -> None:
    class Described(Settings):
        """Base.

        Attributes:
            old: Once
                more; None for none.
        """

        old: int | None = None

    class Forgotten(Described):
        """A model. None of it is read.

        Second paragraph.

        Attributes:
            known: Known.
        """

        known: bool = True
        forgotten: Literal["a"] | None = added_field()

    (section,) = reference._Walk().section("block", Forgotten, False)
    assert section.text == "A model. ``null`` of it is read.\n\nSecond paragraph."
    assert section.settings == (
        Setting("block.old", "", "a whole number, or ``null``", "``null``", "Once more; ``null`` for none."),
        Setting("block.known", "", "``true`` or ``false``", "``true``", "Known."),
        Setting("block.forgotten", "", "``a`` or ``null``", "``null``", ""),
    )


def test_no_key_is_described_twice() -> None:
    keys = [(setting.key, setting.kind) for setting in reference.all_settings()]
    assert len(keys) == len(set(keys)) > 100


def test_keys_that_are_no_fields_are_those_that_reading_a_recipe_takes() -> None:
    assert set(TeacherKeys.model_fields) | set(Training.model_fields) == load._TEACHER_KEYS
    assert {*load._ROW_KEYS, "hyperparameters"} == set(MethodEntry.model_fields)
    assert not FileKeys.model_fields.keys() & recipe.Recipe.model_fields.keys()
    assert pop_seeds({}, "") == (TeacherKeys().seed,)
    content = {"extends": "digits/base.yaml", "pairs": [{"teacher": None, "student": "resnet8"}], "methods": ["none"]}
    read = load.read_recipe(content | {"name": "x", "optimizer": {"lr": 0.5}, "schedule": {"warmup_epochs": 1}})
    assert read.dataset.name == "digits"
    for block in ("optimizer", "schedule"):
        (name,) = reference.find(f"{block}.name")
        without_name = load._with_names({block: {}})[block]
        assert name.default == f"``{without_name['name']}``"


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[f"{model.__name__}.{name}" for model, name in FIELDS])
def test_a_default_written_in_a_recipe_is_the_default(model: type[BaseModel], name: str) -> None:
    field = model.model_fields[name]
    if field.is_required() or (_kind(model) and name == "name"):
        return
    (setting,) = _described(model, name)
    value = parse_yaml(setting.default.strip("`"))
    read = TypeAdapter(field.rebuild_annotation()).validate_json(json.dumps(value))
    is_rounded = isinstance(field.default, float | tuple)
    assert read == (pytest.approx(field.default, rel=1e-5) if is_rounded else field.default)


def _intervals(annotation: Any, marks: list[Any]) -> Iterator[tuple[type, list[Interval]]]:
    """The numbers within a type, with their bounds."""
    flat = [inner for mark in marks for inner in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    if annotation in {int, float}:
        yield annotation, [mark for mark in flat if isinstance(mark, Interval)]
    for index, argument in enumerate(get_args(annotation)):
        is_marked = hasattr(annotation, "__metadata__")
        if not (is_marked and index):
            yield from _intervals(argument, list(annotation.__metadata__) if is_marked else [])


def test_a_number_without_an_upper_bound_on_the_page_has_the_one_that_the_page_says() -> None:
    seen = 0
    for model, name in FIELDS:
        field = model.model_fields[name]
        for kind, intervals in _intervals(field.annotation, field.metadata):
            (interval,) = intervals
            top = interval.le if interval.le is not None else interval.lt
            assert top is not None, f"{model.__name__}.{name} has no limit; take a type of config/limits.py"
            words = allowed(kind, intervals)
            assert (top == type_words.LARGEST) != (f"{top:,}" in words or f"{top:g}" in words), words
            seen += 1
    assert seen > 60


def test_types_in_words() -> None:
    assert doctest.testmod(type_words).failed == 0
    named = Field(default=(0.5,), min_length=1)
    assert allowed(int | str) == "a whole number, or text"
    assert allowed(float, [Interval(gt=0, lt=1)]) == "a number above 0 and below 1"
    assert allowed(float, [Interval(ge=0, le=1e9)]) == "a number, at least 0"
    assert allowed(tuple[float, ...], named.metadata) == "a list of at least 1 entry, each a number"
    assert allowed(tuple[str, ...]) == "a list of texts"
    assert allowed(tuple[int, float]) == "a list of 2 entries, each a whole number and a number"
    assert allowed(Sha256) == "a SHA-256 checksum of 64 hexadecimal digits"
    assert allowed(Literal["a"]) == "``a``"
    assert allowed(dict[str, Any]) == "a mapping"
    assert allowed(dict[str, dict[str, Any]]) == allowed(dict[str, Training]) == "a mapping of mappings"
    assert (default(""), default("kd"), default(5e-4), default(False)) == ('""', "kd", "0.0005", "false")
    with pytest.raises(TypeError, match="there are no words for <class 'complex'>"):
        allowed(complex)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("epochs", {"epochs"}),
        ("optimizer.nesterov", {"optimizer.nesterov"}),
        ("nesterov", {"optimizer.nesterov"}),
        ("weight", {"adversarial.second_view.weight"}),
        ("training.epochs", {"epochs"}),
        ("pairs.3.training.optimizer.lr", {"optimizer.lr"}),
        ("pairs.0.methods.kd.training.epochs", {"epochs"}),
        ("pairs.0.methods.kd.untuned", {"pairs.N.methods.LABEL.untuned"}),
        ("methods.kd ls.standardise", {"methods.LABEL.standardise"}),
        ("methods.LABEL.training", {"methods.LABEL.training"}),
        ("teacher_training.schedule.gamma", {"schedule.gamma"}),
        ("teacher_training.seeds", {"teachers.NETWORK.seeds"}),
        ("teachers.resnet34.tv_in1k.weights", {"teachers.NETWORK.weights"}),
        ("teachers.resnet34.tv_in1k.input.size", {"input.size"}),
        ("second_view.randaugment.bins", {"augment.randaugment.bins"}),
        ("second_view", {"second_view"}),
        ("adversarial.second_view", {"adversarial.second_view"}),
        ("pairs.first.student", set()),
        ("optimizer.learning_rate", set()),
        ("training.dataset.name", set()),
        ("", set()),
    ],
)
def test_a_key_is_found_wherever_a_recipe_may_have_it(key: str, expected: set[str]) -> None:
    assert {setting.key for setting in reference.find(key)} == expected


def test_blocks_and_similar_keys() -> None:
    assert {section.kind for section in reference.within("schedule")} == {"", "step", "cosine", "constant"}
    assert [section.key for section in reference.within("second_view")] == ["augment", "augment.randaugment"]
    assert reference.within("epochs") == []
    assert reference.similar("optimzer.lr") == "optimizer.lr"
    assert reference.similar("millestones") == "milestones"
    assert reference.similar("xyzzy") is None
