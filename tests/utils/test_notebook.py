"""Progress in a notebook: one output, which holds the last lines."""

from __future__ import annotations

from typing import Any

import IPython
import IPython.display
import pytest

from kd_bench.python_api.compare import _notebook_console
from kd_bench.utils.notebook import in_notebook


class Shell:
    """As the shell of a kernel."""

    kernel = object()


class Handle:
    """Records what is shown in its place."""

    def __init__(self, content: dict[str, str]) -> None:
        self.contents = [content]

    def update(self, content: dict[str, str], raw: bool) -> None:
        assert raw
        self.contents.append(content)


def test_the_last_lines_are_replaced_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Handle] = []

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        handles.append(Handle(content))
        return handles[-1]

    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a kernel
    monkeypatch.setattr(IPython.display, "display", display)
    assert in_notebook()
    console = _notebook_console()
    assert console is not None and not console.is_terminal and not console.is_jupyter
    for number in range(100):
        console.print(f"resnet14 -> resnet8, seed {number}: {'a word ' * 40}<end>", markup=False)
    (handle,) = handles
    assert len(handle.contents) == 100
    assert handle.contents[0]["text/plain"].startswith("resnet14 -> resnet8, seed 0: a word")
    lines = handle.contents[-1]["text/plain"].splitlines()
    assert len(lines) == 16 and lines[0].startswith("resnet14 -> resnet8, seed 84:")
    assert all(line.endswith("<end>") for line in lines)
    assert "resnet14 -&gt; resnet8, seed 99" in handle.contents[-1]["text/html"]
    assert "\x1b" not in handle.contents[-1]["text/plain"]


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IPython, "get_ipython", object)
    assert not in_notebook() and _notebook_console() is None
