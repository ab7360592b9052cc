"""A description of every setting of a recipe, from the fields of the models and the docstrings' "Attributes:".

The page "Settings of a recipe" and ``kd-bench list settings`` show it. A new field needs no change here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kd_bench.config import type_words
from kd_bench.config.base import NonEmpty, Settings, nested_models
from kd_bench.config.limits import Trials
from kd_bench.config.recipe import MethodEntry, Recipe, RowOfPair
from kd_bench.config.teacher_start import TeacherStart
from kd_bench.config.trial import LogitSettings, Seed, Seeds, Training
from kd_bench.utils.errors import nearest
from kd_bench.utils.signatures import arguments_in


class FileKeys(Settings):
    """Keys of a recipe's file that the recipe no longer has once it is read.

    Attributes:
        extends: The recipe that this one starts from: a path relative to this file, or the name of a packaged recipe.
            The keys of this file replace those of the other, mapping by mapping.
    """

    extends: NonEmpty | None = None


class TeacherKeys(TeacherStart):
    """Where a teacher's weights come from, and its seeds. Beside these keys, all settings of a training are allowed.

    Attributes:
        weights: A file of weights of a teacher that is not trained, or ``published`` for the file that its card names
            and ``kd-bench teacher fetch`` has downloaded; None for a teacher that is trained first.
        seed: Seed of the teacher's training.
        seeds: Number of seeds, from 0, or the seeds as a list, instead of ``seed``: each trial of the student is then
            repeated with each of these teachers.
    """

    weights: NonEmpty | None = None
    seed: Seed = 0
    seeds: Trials | Seeds | None = None


#: Models of the entries of mappings whose annotation does not name them, by key.
_ENTRIES: dict[str, type[BaseModel]] = {"pairs.N.methods": RowOfPair, "teachers": TeacherKeys}
#: Models whose keys a mapping has beside those of its own model.
_BESIDE: dict[type[BaseModel], type[BaseModel]] = {MethodEntry: LogitSettings}
#: What stands for the index or the name of an entry, by key of the list or mapping; and what an index or name may be.
_PLACEHOLDERS = {"pairs": "N", "methods": "LABEL", "pairs.N.methods": "LABEL", "teachers": "NETWORK"}
_NAMES = {"N": r"(?:N|\d+)", "LABEL": ".+", "NETWORK": ".+"}
#: Defaults that reading a recipe fills in.
_FILLED_IN = {"name": "the file's name", "methods.LABEL.method": "the label"}
#: Where the settings of a training may stand besides the top level, as a pattern.
_PLACES = r"pairs\.(?:N|\d+)\.(?:methods\..+\.)?training|methods\..+\.training|teacher_training|teachers\..+|training"


@dataclass(frozen=True)
class Setting:
    """A key of a recipe.

    Attributes:
        key: With dots: ``optimizer.lr``. ``N``, ``LABEL`` and ``NETWORK`` stand for an index or a name.
        kind: The ``name`` of the mapping that the setting is for, e.g. "adamw"; "" if there is one kind only.
        allowed: Its values, in plain words. In all texts, code is within double backticks.
        default: Its default as a recipe would have it, or "required".
        meaning: What it does; empty if no docstring says it.
    """

    key: str
    kind: str
    allowed: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings of a model.

    Attributes:
        key: The key of the mapping; "" for the top level of the recipe.
        kind: As that of a setting.
        text: The docstring of the model, without its attributes.
        settings: In the order of the fields.
        is_training: Whether they are settings of a training, which pairs, rows and teachers may have, too.
        also: Other keys whose mappings have the same settings.
    """

    key: str
    kind: str
    text: str
    settings: tuple[Setting, ...]
    is_training: bool
    also: tuple[str, ...] = ()


@cache
def sections() -> tuple[Section, ...]:
    """Returns all settings of a recipe: its own keys, those of its pairs, rows and teachers, and of the training."""
    walk = _Walk()
    sections = [*walk.section("", Recipe, False, before=FileKeys, leave_out=Training.model_fields)]
    sections += walk.section("", Training, True)
    return tuple(replace(section, also=tuple(walk.other_keys(section.key))) for section in sections)


def all_settings() -> list[Setting]:
    """Returns the settings of all sections."""
    return [setting for section in sections() for setting in section.settings]


def find(key: str) -> list[Setting]:
    """Returns the settings that a key stands for, several if kinds of a block share it; none if there is no such key.

    Args:
        key: With dots, as on the page, in an error message or after ``--set``: ``pairs.0.training.optimizer.lr`` is
            ``optimizer.lr``. A last part alone stands for all keys that end with it.
    """
    named = [
        setting
        for section in sections()
        for setting in section.settings
        if re.fullmatch(_pattern(section, setting), key)
    ]
    return named or [setting for setting in all_settings() if setting.key.rpartition(".")[2] == key]


def within(key: str) -> list[Section]:
    """Returns the sections of a block and of the blocks within it; empty for the key of a single value."""
    key = next((section.key for section in sections() if key in section.also), key)
    return [section for section in sections() if f"{section.key}.".startswith(f"{key}.")]


def similar(key: str) -> str | None:
    """Returns the key that is most similar to a text; None if none is."""
    keys = [setting.key for setting in all_settings()]
    return nearest(key, [*keys, *(name.rpartition(".")[2] for name in keys)])


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Returns what the docstrings of a model and of its bases say of its fields, by name."""
    docs = [vars(base).get("__doc__") or "" for base in reversed(model.__mro__) if issubclass(base, BaseModel)]
    return {name: _in_yaml(text) for doc in docs for name, text in arguments_in(doc, "Attributes").items()}


class _Walk:
    """Goes through the models of a recipe. A model that several keys have is described once."""

    def __init__(self) -> None:
        self._keys: dict[type[BaseModel], str] = {}
        self._others: dict[str, list[str]] = {}

    def other_keys(self, key: str) -> Iterator[str]:
        """Yields the other keys of a mapping that is described under ``key``."""
        for first, others in self._others.items():
            if f"{key}.".startswith(f"{first}."):
                yield from (f"{other}{key.removeprefix(first)}" for other in others)

    def section(
        self,
        key: str,
        model: type[BaseModel],
        is_training: bool,
        kind: str = "",
        before: type[BaseModel] | None = None,
        after: type[BaseModel] | None = None,
        leave_out: Collection[str] = (),
    ) -> Iterator[Section]:
        """Yields the section of a mapping, and those of the mappings within it.

        Args:
            key: Key of the mapping.
            model: The model of its keys.
            is_training: As ``Section.is_training``.
            kind: As ``Section.kind``.
            before, after: Models of other keys that the mapping has, before and after its own.
            leave_out: Fields to leave out.
        """
        settings, blocks = [], []
        for part in filter(None, (before, model, after)):
            texts = meanings(part)
            for name, field in part.model_fields.items():
                if name not in leave_out:
                    full = f"{key}.{name}" if key else name
                    inner = [_ENTRIES[full]] if full in _ENTRIES else nested_models(field.annotation)
                    settings.append(_setting(full, kind, field, texts.get(name, "")))
                    blocks += [(full, field, inner)] if inner else []
        yield Section(key, kind, _introduction(model), tuple(settings), is_training)
        for full, field, inner in blocks:
            yield from self._block(full, field, inner, is_training)

    def _block(
        self, key: str, field: FieldInfo, models: Sequence[type[BaseModel]], is_training: bool
    ) -> Iterator[Section]:
        first = models[0]
        if first in self._keys:
            self._others.setdefault(self._keys[first], []).append(key)
            return
        if key in _PLACEHOLDERS:
            key = f"{key}.{_PLACEHOLDERS[key]}"
        self._keys[first] = key
        if len(models) == 1:
            yield from self.section(key, first, is_training, after=_BESIDE.get(first))
            return
        # Kinds of a block, which its name selects.
        kinds = [get_args(model.model_fields["name"].annotation)[0] for model in models]
        allowed = type_words.allowed(Literal[tuple(kinds)])
        name = Setting(f"{key}.name", "", allowed, f"``{field.default.name}``", meanings(first).get("name", ""))
        yield Section(key, "", "", (name,), is_training)
        for kind, model in zip(kinds, models, strict=True):
            yield from self.section(key, model, is_training, kind, leave_out=("name",))


def _setting(key: str, kind: str, field: FieldInfo, meaning: str) -> Setting:
    value = field.get_default(call_default_factory=True)
    default = "required" if field.is_required() else f"``{type_words.default(value)}``"
    allowed = type_words.allowed(field.annotation, field.metadata)
    return Setting(key, kind, allowed, _FILLED_IN.get(key, default), meaning)


def _introduction(model: type[BaseModel]) -> str:
    """Returns the docstring of a model without its attributes."""
    doc = inspect.cleandoc(vars(model).get("__doc__") or "")
    return _in_yaml(re.split(r"\n*^Attributes:$", doc, flags=re.MULTILINE)[0])


def _in_yaml(text: str) -> str:
    """Returns a text for people who write YAML: null instead of None."""
    return re.sub(r"\bNone\b", "``null``", text)


def _pattern(section: Section, setting: Setting) -> str:
    """Returns a pattern of the keys that stand for a setting, with any index for N, any name for LABEL, and so on."""
    keys = [setting.key, *(f"{other}{setting.key.removeprefix(section.key)}" for other in section.also)]
    texts = [r"\.".join(_NAMES.get(part, re.escape(part)) for part in key.split(".")) for key in keys]
    if section.is_training:
        texts = [rf"(?:(?:{_PLACES})\.)?{text}" for text in texts]
    if section.key == "teachers.NETWORK":
        texts += [rf"teacher_training\.{re.escape(setting.key.rpartition('.')[2])}"]
    return "|".join(texts)
