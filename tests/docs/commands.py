"""What a command in the documentation says: taken apart as the command line does it, and looked up; nothing is run."""

from __future__ import annotations

import re
import shlex
import tomllib
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import typer

from kd_bench.cli.main import app

ROOT = Path(__file__).parents[2]

#: Programs of others, of which nothing is known here.
PROGRAMS = {"git", "cd", "cat", "ls", "cp", "mkdir", "rsync", "ray", "tensorboard", "wandb", "pytest"}

#: A recipe of the reader's.
READERS_FILE = re.compile(r"[A-Z]+|[a-z_]+\.yaml")

#: The name that ``kd-bench compare`` gives a comparison.
COMPARISON = re.compile(r"compare-(?P<dataset>\w+)-(?P<teacher>\w+)-(?P<student>\w+)")


def taken_apart(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name and its parameters, as the command line takes it apart without running anything.

    Raises:
        Exception: typer's, for commands, options and values that there are not.
    """
    command: Any = typer.main.get_command(app)
    context, path = None, []
    name, rest = "kd-bench", list(arguments)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "commands"):
            return " ".join(path), context.params
        left = [*context._protected_args, *context.args]
        if not left and command.invoke_without_command:
            return " ".join(path), context.params
        name, command, rest = command.resolve_command(context, left)
        path.append(name)


@cache
def options() -> set[str]:
    option_names: set[str] = {"--help"}
    todo: list[Any] = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        option_names |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        todo += getattr(command, "commands", {}).values()
    return option_names


@cache
def targets() -> tuple[set[str], set[str]]:
    """Targets and variables of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):", text, re.M)), set(re.findall(r"^([A-Z_]+) \??:?=", text, re.M))


def check(words: list[str], prose: bool = False) -> None:
    """Makes sure that a command is one, as far as this can be known without running it.

    Args:
        words: The command.
        prose: Whether it stands in a sentence, where arguments may be left out.
    """
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, *rest = words
    if program == "kd-bench":
        check_ours(rest, prose)
    elif program == "make":
        goals, variables = targets()
        for word in rest:
            name, given, _ = word.partition("=")
            assert name in (variables if given else goals), f"make has no {word!r}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert rest[0] == "install", rest
        asked = [extra for word in rest for named in re.findall(r"\[(.+)\]", word) for extra in named.split(",")]
        assert set(asked) <= set(extras), f"there is no extra {asked}"
    elif "kd_bench" in rest or "kd-bench" in rest:
        check_ours(rest[rest.index("kd_bench" if "kd_bench" in rest else "kd-bench") + 1 :])
    elif program in ("python", "export"):
        known = " ".join(path.read_text() for path in (ROOT / "kd_bench").rglob("*.py"))
        files = [word for word in rest if word.endswith(".py") and "/" in word]
        assert all((ROOT / file).is_file() for file in files), files
        names = [word.partition("=")[0] for word in rest if word.startswith("KD_BENCH_")]
        assert all(name in known for name in names), names
    else:
        assert program in PROGRAMS, f"what is {program!r}? teach tests/docs/test_docs.py to check it"


def check_ours(arguments: list[str], prose: bool = False) -> None:
    if prose:
        arguments = ["1" if word == "N" else word for word in arguments]
    try:
        name, given = taken_apart(arguments)
    except Exception as error:
        if type(error).__name__ == "Exit" and "--help" in arguments:
            return
        if prose and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
            return
        raise AssertionError(f"{shlex.join(['kd-bench', *arguments])}: {error}") from error
    hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    look_up(name, tuple(sorted((key, value) for key, value in hashable.items() if value is not None)))


@cache
def look_up(command: str, given: tuple[tuple[str, Any], ...]) -> None:
    """Makes sure that what a command names is there: recipes, settings, methods, networks, data sets, formats."""
    from kd_bench import api
    from kd_bench.cli.list import KINDS
    from kd_bench.cli.show import describe
    from kd_bench.data import registry as datasets
    from kd_bench.models import registry as models
    from kd_bench.report.render import FORMATS
    from kd_bench.trials.recipe_file import recipe_file

    defaults = {"set_": (), "only": (), "trials": None, "dataset": None, "teacher": None, "recipe": ()}
    of = Namespace(**{**defaults, **dict(given)})
    if "format_" in of:
        assert of.format_ in FORMATS, of.format_
    if command == "show":
        if not READERS_FILE.fullmatch(of.name):
            describe(of.name)
    elif command == "list":
        assert of.kind in KINDS
    elif command == "compare":
        named = [method for method in of.methods.split(",") if ".py:" not in method]
        content = api.base_recipe(of.dataset) | {"name": "compare", "methods": ["none", *named]}
        planned({**content, "pairs": [{"teacher": of.teacher, "student": of.student}]}, of.set_)
    elif command in ("data fetch", "teacher fetch", "teacher train", "teacher verify"):
        datasets.spec(of.dataset or of.name)
        if of.dataset and "name" in of:
            planned(api.base_recipe(of.dataset) | {"name": "one", "methods": ["none"], "pairs": [
                {"teacher": None, "student": of.name}]}, of.set_)  # fmt: skip
    elif command == "teacher convert" and "model" in of:
        models.resolve(of.model)
    recipes = (of.recipe,) if isinstance(of.recipe, str) else of.recipe
    for recipe in (*recipes, *([of.target] if command in ("attack", "evaluate") and "model" not in of else [])):
        pair = COMPARISON.fullmatch(recipe)
        if pair is not None:
            datasets.spec(pair["dataset"])
            assert models.resolve(pair["teacher"]) and models.resolve(pair["student"])
        elif "out" in of and recipe_file(recipe, ROOT / of.out):
            planned(str(recipe_file(recipe, ROOT / of.out)), of.set_, of.only, of.trials)
        elif not READERS_FILE.fullmatch(recipe):
            planned(recipe.removeprefix("recipes/").removesuffix(".yaml"), of.set_, of.only, of.trials)


def planned(source: Any, overrides: Any = (), only: Any = (), trials: int | None = None) -> None:
    from kd_bench.config.load import read_recipe
    from kd_bench.trials import plan_without_weights

    plan_without_weights.plan_with_placeholders(read_recipe(source, overrides, trials), "docs", only)
