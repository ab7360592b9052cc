"""``kd-bench list`` and ``kd-bench show``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli.options import check_choice

if TYPE_CHECKING:
    from kd_bench.models.cards import Role


def list_(
    kind: Annotated[str, typer.Argument(help="methods, networks, teachers, students, datasets or recipes.")],
) -> None:
    """List the names of a kind, with a line about each."""
    check_choice("list", kind, KINDS)
    lines = KINDS[kind]()
    width = max(map(len, lines))
    for name, line in lines.items():
        typer.echo(f"{name:{width}}  {line}".rstrip())


def show(name: Annotated[str, typer.Argument(help="A method, network, teacher, student, data set or recipe.")]) -> None:
    """Show the facts about a method, network, teacher, student, data set or recipe."""
    from kd_bench.cli.show import describe

    typer.echo(describe(name))


def _methods() -> dict[str, str]:
    from kd_bench.methods import _registry as methods

    families = ("baseline", "logits", "features", "adversarial")
    infos = sorted(map(methods.describe, methods.names()), key=lambda info: families.index(info.family))
    return {info.name: f"{info.family:<{max(map(len, families))}}  {info.summary}" for info in infos}


def _networks() -> dict[str, str]:
    from kd_bench.models import registry

    return registry.own_models() | registry.offered_models()


def _cards(role: Role) -> dict[str, str]:
    from kd_bench.models import cards

    return {f"{card.dataset}/{card.name}": cards.summary(card) for card in cards.load_all(role)}


def _datasets() -> dict[str, str]:
    from kd_bench.data import registry

    return {spec.name: spec.summary for spec in map(registry.spec, registry.names())}


def _recipes() -> dict[str, str]:
    from kd_bench.config.load import packaged_recipes, recipe_description

    return {name: recipe_description(name) for name in packaged_recipes()}


#: Functions that return a line about each name, by kind.
KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "networks": _networks,
    "teachers": lambda: _cards("teachers"),
    "students": lambda: _cards("students"),
    "datasets": _datasets,
    "recipes": _recipes,
}
