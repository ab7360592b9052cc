"""Rows that options such as ``--method`` add to a recipe."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from kd_bench.methods import _registry
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import is_file


def method_rows(methods: Iterable[str], context: str, taken: Container[str] = ()) -> dict[str, str]:
    """Returns the methods by the label of their row.

    Args:
        methods: ``NAME`` or ``FILE.py:CLASS``, optionally after ``LABEL=``. A class's label is its name in snake case.
        context: The option they are from, for errors.
        taken: Labels of other rows.

    Raises:
        UserError: If a label is not a word or is taken, or a method is named twice.
    """
    rows: dict[str, str] = {}
    for text in methods:
        label, equals, name = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]*", label):  # the path of a file may contain an equals sign
            label, name = text.rpartition(":")[2], text
            if ".py:" in text:
                label = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", label).lower()
        if not re.fullmatch(r"[\w-]+", label) or not name:
            raise UserError(f"{context} {text}: should be a method's name, FILE.py:CLASS or LABEL=FILE.py:CLASS")
        if rows.get(label) == name:
            raise UserError(f"{context} {text}: is named twice; leave one out, or give it a label: LABEL={name}")
        if label in taken or label in rows:
            raise UserError(f"{context} {text}: there is a row {label!r} already; give it another label: LABEL={name}")
        rows[label] = name
    return rows


def check_methods(names: Iterable[str], option: str) -> None:
    """Checks that methods exist.

    Args:
        names: Names of methods, or ``FILE.py:CLASS``.
        option: The option that they are from, for errors.

    Raises:
        UserError: If one of them does not exist, or its source does not follow the rules of ``Method``.
    """
    for name in names:
        file, colon, attribute = name.rpartition(":")
        if colon and is_file(Path(f"{file}.py")):  # the user wrote a module's name
            raise unknown("method", name, [f"{file}.py:{attribute}"], option)
        _registry.describe(name, option)


def check_without_teacher(rows: Mapping[str, str], weights: str | None) -> None:
    """Checks that a comparison needs no teacher.

    Args:
        rows: The methods by the label of their row.
        weights: The teacher's weights that the user named; None for none.

    Raises:
        UserError: If a method needs a teacher, or there are weights of one.
    """
    for label, name in rows.items():
        if _registry.describe_row(label, name, "--methods").needs_teacher:
            raise UserError(f"--teacher: should name the teacher's network, because {label} needs a teacher")
    if weights is not None:
        raise UserError(f"--weights {weights}: should be those of a teacher, and there is no --teacher")
