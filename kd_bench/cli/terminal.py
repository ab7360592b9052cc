"""Text that is as wide as the terminal, and lines of progress."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

import typer

#: Columns of text for readers if standard output is no terminal.
_COLUMNS = 100


def columns() -> int | None:
    """Returns the columns of the terminal, or of ``COLUMNS``; None if standard output is no terminal."""
    return shutil.get_terminal_size((0, 0)).columns or None


def reading_columns() -> int:
    """Returns the columns of text that people read and programs do not."""
    return columns() or _COLUMNS


def fit(text: str, width: int | None, hang: int | None = None) -> str:
    """Breaks the lines of a text between words.

    Args:
        text: The text.
        width: Columns; None leaves the text as it is, so that a program finds one line for each item.
        hang: Spaces before the continuation of a line; by default those below its second column, none in a paragraph,
            or else two more than the line has itself.
    """
    if width is None:
        return text
    return "\n".join(_fit(line, width, hang) for line in text.split("\n"))


def show_progress(line: str, *, done: bool) -> None:
    """Prints a line on standard error when the work is done; on a terminal also before, each in place of the last."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{line}", err=True, nl=done)
    elif done:
        typer.echo(line, err=True)


def _fit(line: str, width: int, hang: int | None) -> str:
    if len(line) <= width:
        return line
    if hang is None:
        gap = re.match(r" *\S+(?: \S+)*  +(?=\S)", line)
        is_paragraph = re.match(r"(?![\w-]+:)\w", line)
        hang = gap.end() if gap else 0 if is_paragraph else len(line) - len(line.lstrip()) + 2
    indent = " " * (hang if hang <= width / 2 else 4)
    wrapper = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(line)
