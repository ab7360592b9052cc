"""``kd-bench list`` and ``kd-bench show``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import typer

from kd_bench.cli import completion, terminal
from kd_bench.cli.options import OUT, Out, check_choice, check_out
from kd_bench.utils.errors import UserError

Described = TypeVar("Described")

KINDS = ("methods", "networks", "teachers", "students", "datasets", "recipes", "settings")


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, networks, teachers, students, datasets, recipes or settings.",
            autocompletion=completion.lists,
        ),
    ],
) -> None:
    """List the names of a kind, with a line about each."""
    check_choice("list", kind, KINDS)
    lines = _lines(kind)
    width, columns = max(map(len, lines)), terminal.columns()
    for name, line in lines.items():
        typer.echo(terminal.fit(f"{name:{width}}  {line}".rstrip(), columns))


def show(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="A method, network, teacher, student, data set, recipe or setting.",
            autocompletion=completion.subjects,
        ),
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Print the file of a recipe as it is.")] = False,
    out: Out = OUT,
) -> None:
    """Show the facts about a method, network, teacher, student, data set, recipe or setting.

    Of a recipe: every setting, and the file that it comes from.
    """
    from kd_bench.cli.show import describe

    source = context.get_parameter_source("out")
    if source is not None and source.name == "COMMANDLINE":  # the folder of the environment may be yet to come
        check_out(out)
    width = terminal.reading_columns()
    text = describe(name, out, raw, width)
    typer.echo(text if raw else terminal.fit(text, width))


def _lines(kind: str) -> dict[str, str]:
    """Returns a line about each name of a kind."""
    if kind == "methods":
        from kd_bench.methods import _registry as methods

        families = ("baseline", "logits", "features", "adversarial")
        infos, unusable = _described(methods.describe, methods.names())
        infos.sort(key=lambda info: families.index(info.family))
        return {info.name: f"{info.family:<{max(map(len, families))}}  {info.summary}" for info in infos} | unusable
    if kind == "networks":
        from kd_bench.models import registry as models

        return models.own_models() | models.offered_models()
    if kind in {"teachers", "students"}:
        from kd_bench.models import cards

        role: cards.Role = "teachers" if kind == "teachers" else "students"
        return {f"{card.dataset}/{card.name}": cards.summary(card) for card in cards.load_all(role)}
    if kind == "datasets":
        from kd_bench.data import registry as datasets

        specs, unusable = _described(datasets.spec, datasets.names())
        return {spec.name: spec.summary for spec in specs} | unusable
    if kind == "settings":
        from kd_bench.cli.show_setting import setting_lines

        return setting_lines()
    from kd_bench.config.load import packaged_recipes, recipe_description

    return {name: recipe_description(name) for name in packaged_recipes()}


def _described(describe: Callable[[str], Described], names: Iterable[str]) -> tuple[list[Described], dict[str, str]]:
    """Returns descriptions, and lines about the names of installed packages that cannot be used."""
    descriptions, unusable = [], {}
    for name in names:
        try:
            descriptions.append(describe(name))
        except UserError as error:  # one package must not hide the others
            unusable[name] = f"cannot be used: {error}"
    return descriptions, unusable
