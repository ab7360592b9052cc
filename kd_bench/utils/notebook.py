"""Output of long work in a notebook: the last lines, replaced in place, because thousands would fill the page."""

from __future__ import annotations

import html
import io
import sys
from collections import deque
from typing import Any

#: Lines that stay visible.
_LINES = 16


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class LastLines(io.TextIOBase):
    """A stream whose last lines a notebook shows below the cell."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque([""], maxlen=_LINES + 1)  # the last one has not ended
        self._handle: Any = None

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, text: str) -> int:
        """Appends text and shows the last lines."""
        first, *others = text.split("\n")
        self._lines[-1] += first
        self._lines.extend(others)
        if others:
            self._show()
        return len(text)

    def _show(self) -> None:
        from IPython.display import display

        shown = "\n".join(line for line in self._lines if line)
        content = {"text/plain": shown, "text/html": f"<pre>{html.escape(shown)}</pre>"}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
