"""Names that a shell offers when the user presses Tab. Each function imports only what reading the names needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns packaged recipes, and the comparisons in the results folder."""
    from kd_bench.config.load import packaged_recipes
    from kd_bench.trials.recipe_file import kept_recipes

    return _matching([*packaged_recipes(), *kept_recipes(Path(ctx.params.get("out") or "runs"))], incomplete)


def methods(incomplete: str) -> list[str]:
    """Returns methods."""
    from kd_bench.methods import _registry

    return _matching(_registry.names(), incomplete)


def listed_methods(incomplete: str) -> list[str]:
    """Returns methods for the last name of a list with commas."""
    from kd_bench.methods import _registry

    return _last_of_list(_registry.names(), incomplete)


def networks(incomplete: str) -> list[str]:
    """Returns our networks, and timm's if their names are known without importing timm."""
    from kd_bench.config.network_names import short_name
    from kd_bench.models import registry
    from kd_bench.models.timm_names import cached_timm_names

    own_names = registry.own_models()
    timm = cached_timm_names()
    names = [*map(short_name, own_names), *own_names, *registry.offered_models()]
    if timm is not None and incomplete:
        names += sorted(timm.pretrained if "." in incomplete else timm.models)
    return _matching(names, incomplete)


def datasets(incomplete: str) -> list[str]:
    """Returns data sets."""
    from kd_bench.data import registry

    return _matching(registry.names(), incomplete)


def teachers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the teachers with a card, of the data set that ``--dataset`` names."""
    from kd_bench.models import cards

    dataset = ctx.params.get("dataset")
    return _matching((card.name for card in cards.load_all("teachers") if dataset in (None, card.dataset)), incomplete)


def formats(incomplete: str) -> list[str]:
    """Returns formats of tables."""
    from kd_bench.report.render import FORMATS

    return _matching(FORMATS, incomplete)


def columns(incomplete: str) -> list[str]:
    """Returns columns of tables for the last name of a list with commas."""
    from kd_bench.report.columns import COLUMNS

    return _last_of_list(COLUMNS, incomplete)


def metrics(incomplete: str) -> list[str]:
    """Returns metrics of ``kd-bench evaluate`` for the last name of a list with commas."""
    from kd_bench.trials.evaluation_file import METRICS

    return _last_of_list((*METRICS, "all"), incomplete)


def conditions(incomplete: str) -> list[str]:
    """Returns the keys of ``--only``, and methods after that of a method."""
    from kd_bench.config.selection import SELECTORS

    key, equals, values = incomplete.partition("=")
    if not equals:
        return _matching((f"{name}=" for name in SELECTORS), incomplete)
    return [f"{key}={names}" for names in listed_methods(values)] if key == "method" else []


def executors(incomplete: str) -> list[str]:
    """Returns where cohorts can run."""
    from kd_bench.launch.options import EXECUTOR_OPTIONS

    return _matching(EXECUTOR_OPTIONS, incomplete)


def plugin_kinds(incomplete: str) -> list[str]:
    """Returns the kinds of plug-ins of ``kd-bench new``."""
    from kd_bench.cli.new import KINDS

    return _matching(KINDS, incomplete)


def cache_kinds(incomplete: str) -> list[str]:
    """Returns the kinds of caches of ``kd-bench cache clear``."""
    from kd_bench.cli.cache import KINDS

    return _matching(KINDS, incomplete)


def devices(incomplete: str) -> list[str]:
    """Returns kinds of devices."""
    return _matching(("auto", "cpu", "cuda"), incomplete)


def lists(incomplete: str) -> list[str]:
    """Returns what ``kd-bench list`` lists."""
    from kd_bench.cli.list import KINDS

    return _matching(KINDS, incomplete)


def subjects(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns what ``kd-bench show`` describes."""
    from kd_bench.config.settings_reference import all_settings

    settings = [setting.key for setting in all_settings()] if incomplete else []
    return [
        *methods(incomplete),
        *datasets(incomplete),
        *networks(incomplete),
        *recipes(ctx, incomplete),
        *_matching(settings, incomplete),
    ]


def _last_of_list(names: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _matching(names, last)]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return list(dict.fromkeys(name for name in names if name.startswith(incomplete)))
