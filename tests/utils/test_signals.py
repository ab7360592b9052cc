"""SIGTERM and SIGHUP as an exception, Ctrl-C that waits for imports, and signals that are collected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from kd_bench.utils.errors import Terminated
from kd_bench.utils.signals import collecting_signals, interrupting_after_imports, raising_on_termination

#: Writes a module that sends signals, and returns its name.
ModuleMaker = Callable[..., str]

#: A program that notes that its terminal, which has its standard streams, was closed. It makes it its terminal itself.
IN_A_TERMINAL = """
import fcntl, sys, termios, time
from pathlib import Path
from kd_bench.utils.errors import Terminated
from kd_bench.utils.signals import raising_on_termination

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
folder = Path(sys.argv[1])
with raising_on_termination():
    try:
        (folder / "ready").touch()
        time.sleep(60)
    except Terminated as error:
        print("checkpoints are being saved", flush=True)
        print(error, file=sys.stderr, flush=True)
        (folder / "saved").write_text(str(error))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_and_the_handler_of_before_comes_back(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated, match=f"^stopped by {number.name}$") as raised, raising_on_termination():
        os.kill(os.getpid(), number)
    assert (raised.value.signal, raised.value.exit_code) == (number, code)
    assert signal.getsignal(number) is before


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleMaker]:
    """Writes a module that sends signals to its own process, and returns its name. Afterwards it is forgotten."""

    def write(*signals: signal.Signals) -> str:
        lines = ["import os", *(f"os.kill(os.getpid(), {number:d})" for number in signals), "imported = True"]
        (tmp_path / "sends_signals.py").write_text("\n".join(lines))
        return "sends_signals"

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop("sends_signals", None)


def test_ctrl_c_waits_until_a_module_is_imported(module: ModuleMaker) -> None:
    with pytest.raises(KeyboardInterrupt), interrupting_after_imports():
        import_module(module(signal.SIGINT))
        time.sleep(10)
    assert sys.modules["sends_signals"].imported


def test_ctrl_c_interrupts_at_once_outside_of_imports_and_when_it_is_pressed_twice(module: ModuleMaker) -> None:
    with pytest.raises(KeyboardInterrupt), interrupting_after_imports():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupting_after_imports():
        import_module(module(signal.SIGINT, signal.SIGINT))
    assert "sends_signals" not in sys.modules


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupting_after_imports():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_a_second_sighup_does_not_interrupt_what_the_first_one_begins() -> None:
    with raising_on_termination():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Terminated, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_sighup_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising_on_termination():
            os.kill(os.getpid(), signal.SIGHUP)
        with collecting_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_collected_signals_interrupt_nothing() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with collecting_signals() as received:
        assert received == []
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received == list(numbers)
    assert [signal.getsignal(number) for number in numbers] == before


def test_what_is_printed_to_a_closed_terminal_is_no_error(tmp_path: Path) -> None:
    terminal, stream = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path)]
    process = subprocess.Popen(command, stdin=stream, stdout=stream, stderr=stream, start_new_session=True)
    os.close(stream)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.close(terminal)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "stopped by SIGHUP"
