"""Ctrl-C on a terminal: a sentence at once, the cursor comes back however often it is pressed, the run can go on."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """A command that runs on a terminal of 80 columns, and what it has printed there."""

    def __init__(self, *arguments: str) -> None:
        self.output = b""
        self._main, side = pty.openpty()
        command = ["sh", "-c", 'stty cols 80 rows 30; exec "$@"', "sh", sys.executable, "-m", "kd_bench", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": ""},
        )
        os.close(side)

    def read_until(self, wanted: Callable[[bytes], bool], seconds: float) -> None:
        """Reads until the output is as wanted, or the command has ended."""
        deadline = time.monotonic() + seconds
        while not wanted(self.output):
            assert time.monotonic() < deadline, self.output.decode(errors="replace")
            if select.select([self._main], [], [], 0.1)[0]:
                try:
                    read = os.read(self._main, 65536)
                except OSError:  # Linux's way to say that the other side is closed
                    return
                self.output += read

    def signal(self, number: int) -> None:
        """Sends a signal to the command alone, as Ctrl-C does: the workers have sessions of their own."""
        os.kill(self.process.pid, number)


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 4])
def test_the_cursor_comes_back(tmp_path: Path, presses: int) -> None:
    size = ("--only", "method=kd", "--trials", "1", "--set", "teacher_training.epochs=1000")
    terminal = Terminal("run", "demo", *size, "--jobs", "1", "--out", str(tmp_path))
    terminal.read_until(lambda text: re.search(rb"[1-9]\d*/1000", text) is not None, 100)
    assert HIDDEN in terminal.output
    for _ in range(presses):
        terminal.signal(2)
        time.sleep(0.3)
    terminal.read_until(lambda text: False, 60)
    code = terminal.process.wait(10)
    text = terminal.output.decode(errors="replace")
    assert "demo: stopping; checkpoints are being saved" in text
    if presses == 1:
        assert code == 130
        assert "kd-bench: stopped; the same command goes on from here" in text
    assert code in (130, -2)  # another press may end Python itself; a shell reports 130 for both
    assert terminal.output.rindex(SHOWN) > terminal.output.rindex(HIDDEN)
