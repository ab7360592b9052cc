"""Describes the keys of a recipe for ``kd-bench show KEY`` and ``kd-bench list settings``, as docs/settings.md does."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from kd_bench.config import settings_reference
from kd_bench.config.settings_reference import Section, Setting


def describe_setting(key: str) -> str:
    """Returns a text about a key of a recipe, and about those within it if it is a block; "" if there is no such key.

    Args:
        key: With dots: ``optimizer.lr``; see ``settings_reference.find``.
    """
    settings = settings_reference.find(key)
    sections = [section for setting in settings for section in settings_reference.within(setting.key)]
    return _plain("\n\n".join([*_described(settings), *map(_section, dict.fromkeys(sections))]))


def similar_keys(key: str) -> list[str]:
    """Returns the key that is most similar to one that does not exist, for an error; empty if none is."""
    similar = settings_reference.similar(key)
    return [] if similar is None else [similar]


def setting_lines() -> dict[str, str]:
    """Returns the default of each key of a recipe and what it is, in short, by key and kind of the block."""
    settings = settings_reference.all_settings()
    width = min(24, max(len(_plain(setting.default)) for setting in settings))
    return {
        _title([setting]): f"{_plain(setting.default):<{width}}  {_plain(_first_clause(setting.meaning))}"
        for setting in settings
    }


def _first_clause(text: str) -> str:
    """Returns a text up to its first full stop, colon or semicolon outside of code and brackets."""
    clause = re.match(r"(?:``.*?``|\([^)]*\)|e\.g\.|[.:;](?! |$)|[^.:;`(])*", text)
    return clause[0] if clause else text


def _described(settings: Iterable[Setting]) -> list[str]:
    """Returns a text about each setting, and one about all kinds of a block for which it means the same."""
    equal: dict[tuple[str, ...], list[Setting]] = defaultdict(list)
    for setting in settings:
        equal[setting.key, setting.allowed, setting.meaning].append(setting)
    return [
        f"{_title(kinds)}\n  allowed  {allowed}\n  default  {_default(kinds)}\n  meaning  {meaning}"
        for (_, allowed, meaning), kinds in equal.items()
    ]


def _title(kinds: list[Setting]) -> str:
    names = ", ".join(setting.kind for setting in kinds if setting.kind)
    return f"{kinds[0].key} ({names})" if names else kinds[0].key


def _default(kinds: list[Setting]) -> str:
    if len({setting.default for setting in kinds}) == 1:
        return kinds[0].default
    return ", ".join(f"{setting.default} ({setting.kind})" for setting in kinds)


def _section(section: Section) -> str:
    text = [" ".join(part.split()) for part in section.text.split("\n\n") if part]
    if section.kind:
        text[0] = f"{section.key}.name {section.kind}: {text[0]}"
    return "\n\n".join([*text, *_described(section.settings)])


def _plain(text: str) -> str:
    """Returns a text without the marks of code."""
    return text.replace("``", "")
