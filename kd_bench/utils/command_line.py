"""The command with which a trial was trained, for its ``environment.json``: that of a shell, or a call in Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: The call of the package's Python functions under way; None on the command line.
_call: ContextVar[str | None] = ContextVar("call", default=None)


def command_line() -> str:
    """Returns the command of this process, or the call of ``kd_bench`` that is under way in it."""
    return _call.get() or " ".join(["kd-bench", *sys.argv[1:]])


@contextmanager
def python_call(text: str) -> Iterator[None]:
    """Inside, ``command_line`` returns this text; in a notebook, the arguments of the process say nothing."""
    token = _call.set(text)
    try:
        yield
    finally:
        _call.reset(token)
