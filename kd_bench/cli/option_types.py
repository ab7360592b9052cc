"""Options whose values are checked here, because typer's messages differ from version to version."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user

_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def whole_number(name: str, help: str, least: int, most: int) -> Any:
    """Returns an option that is a whole number from ``least`` to ``most``."""
    return _number(name, help, "<int>", _WHOLE, int, f"a whole number from {least:,} to {most:,}", (least, most))


def decimal_number(name: str, help: str, least: float, most: float) -> Any:
    """Returns an option that is a number from ``least`` to ``most``."""
    return _number(name, help, "<float>", _DECIMAL, float, f"a number from {least:,.0f} to {most:,.0f}", (least, most))


def _number(
    name: str, help: str, metavar: str, pattern: re.Pattern[str], kind: type, expected: str, limits: tuple[Any, Any]
) -> Any:
    def parse(text: Any) -> Any:
        if isinstance(text, kind):  # the default
            return text
        number = kind(text) if pattern.fullmatch(text.strip()) else None
        if number is None or not limits[0] <= number <= limits[1]:
            raise UserError(f"{name}: should be {expected} (it is {text!r})")
        return number

    return typer.Option(name, help=help, parser=parse, metavar=metavar)


def path_option(name: str, help: str, environment: str | None = None) -> Any:
    """Returns an option that is a path; an environment variable can set it, too."""
    return typer.Option(name, help=help, envvar=environment, parser=_path_parser(name), metavar="<path>")


def path_argument(name: str, help: str, environment: str | None = None) -> Any:
    """Returns an argument that is a path; an environment variable can set it, too."""
    return typer.Argument(help=help, envvar=environment, parser=_path_parser(name))


def _path_parser(name: str) -> Callable[[Any], Path]:

    def parse(text: Any) -> Path:
        if text == "":
            raise UserError(f"{name}: is empty; write . for the working folder")
        return expand_user(text)  # shells do not, in --out=~/runs and in files of environment variables

    return parse
