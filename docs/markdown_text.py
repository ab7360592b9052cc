"""Markdown of the generated pages."""

from __future__ import annotations

import re
import textwrap


def paragraph(text: str) -> str:
    """Returns a paragraph, or a list, of a docstring as Markdown."""
    if not text.startswith("* "):
        return filled(escaped(" ".join(text.split())), 120)
    items = [" ".join(item.split()) for item in re.split(r"^\* ", text, flags=re.M)[1:]]
    return "\n".join(filled(f"* {escaped(item)}", 120, "  ") for item in items)


def filled(text: str, width: int, indent: str = "") -> str:
    """Returns a text in lines of at most ``width`` characters, all but the first of them indented."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def escaped(text: str) -> str:
    """Returns Markdown that renders as the text; only text in double backticks is code."""
    parts = re.split(r"``(.+?)``", text)
    parts[1::2] = [f"`{code}`" for code in parts[1::2]]
    parts[::2] = [re.sub(r"([\\*_<>|$\[\]])", r"\\\1", plain) for plain in parts[::2]]
    return "".join(parts)


def styled(name: str, table: str) -> str:
    """Returns a table to which the styles of a class in docs/style.css apply."""
    return f'\n<div class="{name}" markdown>\n\n{table}\n</div>\n'


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table, whose cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
