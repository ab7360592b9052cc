"""``kd-bench new``."""

from __future__ import annotations

import importlib.util
import keyword
import shlex
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli.option_types import path_option
from kd_bench.cli.options import check_choice
from kd_bench.utils.errors import UserError

_TEMPLATES = Path(__file__).parents[1] / "templates"

#: More commands to run next, by kind. $target is the plug-in's name in commands, $name the label of its row.
_NEXT = {
    "method": (
        "kd-bench run demo --method $target --only method=none,kd,ikl_kd,$name",
        "kd-bench table demo --method $target --only method=none,kd,ikl_kd,$name --format markdown",
        "kd-bench report --recipe demo --method $target",
    ),
    "model": (
        "kd-bench compare --dataset digits --teacher resnet14 --student $target --methods kd,dist",
        "kd-bench report",
    ),
    "dataset": (
        "kd-bench compare --dataset $target --teacher resnet14 --student resnet8 --methods kd,dist --set epochs=10",
        "kd-bench report",
    ),
    "augmentation": (
        "kd-bench run demo --only method=none,kd,ikl_kd --set augment.own=$target",
        "kd-bench table demo --only method=none,kd,ikl_kd --set augment.own=$target --format markdown",
    ),
}

KINDS = tuple(_NEXT)


def new(
    kind: Annotated[
        str, typer.Argument(help="method, model, dataset or augmentation.", autocompletion=completion.plugin_kinds)
    ],
    name: Annotated[str, typer.Argument(help="Name in snake case, e.g. my_loss.")],
    to: Annotated[Path, path_option("--to", "Folder to write to.")] = Path(),
) -> None:
    """Write a documented example of a plug-in to change, with tests that pass, and show the commands to run next."""
    from kd_bench.utils.files import write_new

    check_choice("kind of file", kind, KINDS, "new")
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith(("_", "test_")):
        raise UserError(f"new {kind}: {name!r} should be a name in Python's snake case, e.g. my_{kind}")
    if kind == "method":
        from kd_bench.config.load import read_recipe
        from kd_bench.methods import _registry as methods

        if name in {*methods.names(), *read_recipe("demo").methods}:  # the commands to run next would be refused
            raise UserError(f"new method: kd-bench has a row {name!r} already; choose another name, e.g. my_{name}")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    source, test = to / f"{name}.py", to / f"test_{name}.py"
    target = f"{source}:{class_name if kind in ('method', 'model') else name}"
    words = {"name": name, "Name": class_name, "target": shlex.quote(target), "test": shlex.quote(str(test))}
    for path in (source, test):
        if path.exists():
            raise UserError(f"new {kind}: {path} is there already; choose another name, or another folder with --to")
    try:
        to.mkdir(parents=True, exist_ok=True)
        for path, template in ((source, f"{kind}.py.txt"), (test, f"test_{kind}.py.txt")):
            text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)
            if not write_new(path, text):
                raise UserError(f"new {kind}: {path} is there already")
    except FileExistsError:
        raise UserError(f"new {kind}: {to} is a file, not a folder") from None
    except OSError as error:
        raise UserError(f"new {kind}: {to} cannot be written to: {error.strerror}") from None
    typer.echo(f"{source}: the {kind}, ready to run; change it\n{test}: its tests, which pass\n\nnext:")
    for command in (*_pytest(), "kd-bench show $target", *_NEXT[kind]):
        typer.echo(f"  {Template(command).substitute(words)}")


def _pytest() -> list[str]:
    """The commands that run the tests. kd-bench does not install pytest."""
    return [*([] if importlib.util.find_spec("pytest") else ["pip install pytest"]), "pytest $test"]
