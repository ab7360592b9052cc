"""SIGTERM and SIGHUP as an exception, Ctrl-C that waits for imports, and signals that wait until they are looked at."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kd_bench.utils.errors import Terminated

#: The system sends it when the terminal is closed or the connection is lost. Windows has none.
_SIGHUP: int | None = getattr(signal, "SIGHUP", None)


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``: locks and processes end, and the command says that it can go on.

    So does the first SIGHUP, unless it is ignored, as under nohup. Further ones do nothing: the system and the shell
    both send it when a terminal is closed, and the second one must not interrupt the saving of checkpoints.
    """

    def raise_terminated(number: int, _: Any) -> None:
        if number == _SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _discard_output_to_closed_terminal()
        raise Terminated(number)

    with _handling(raise_terminated, signal.SIGTERM, _SIGHUP):
        yield


@contextmanager
def collecting_signals() -> Iterator[list[int]]:
    """Inside, SIGINT, SIGTERM and SIGHUP interrupt nothing. Yields the list of those received, which grows.

    SIGHUP is not among them if it is ignored.
    """
    received: list[int] = []

    def collect(number: int, _: Any) -> None:
        if number == _SIGHUP:
            _discard_output_to_closed_terminal()
        received.append(number)

    with _handling(collect, signal.SIGINT, signal.SIGTERM, _SIGHUP):
        yield received


@contextmanager
def interrupting_after_imports() -> Iterator[None]:
    """Inside, Ctrl-C waits until no module is being imported; a second Ctrl-C does not. Ignored, it stays ignored.

    Within an import, ``KeyboardInterrupt`` may be lost in a callback of importlib, or be turned into another error by a
    library that builds a class.
    """
    waits, is_over = threading.Event(), threading.Event()

    def interrupt(_: int, frame: FrameType | None) -> None:
        if _is_importing(frame) and not waits.is_set():
            waits.set()
            threading.Thread(target=_interrupt_after_import, args=(is_over,), daemon=True).start()
        else:
            is_over.set()
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _handling(interrupt, signal.SIGINT):
        try:
            yield
        finally:
            is_over.set()


def _interrupt_after_import(is_over: threading.Event) -> None:
    """Sends SIGINT to the main thread when it imports nothing, unless the time for that is over."""
    main = threading.main_thread().ident
    assert main is not None
    while _is_importing(sys._current_frames().get(main)):
        time.sleep(0.01)
    if not is_over.is_set():
        signal.pthread_kill(main, signal.SIGINT)


def _is_importing(frame: FrameType | None) -> bool:
    """Says whether a frame, or one that led to it, is importlib's."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handling(handler: Any, *numbers: int | None) -> Iterator[None]:
    """Inside, a function handles signals, except for SIGHUP if it is ignored; only the main thread may set it."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers if number is not None}
        if _SIGHUP is not None and before.get(_SIGHUP) is signal.SIG_IGN:
            del before[_SIGHUP]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _discard_output_to_closed_terminal() -> None:
    """Lets standard output and errors vanish if their terminal is closed. To write there would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        try:
            status = os.fstat(stream)
        except OSError:  # it is closed
            continue
        is_device = stat.S_ISCHR(status.st_mode) and status.st_rdev != os.fstat(nowhere).st_rdev
        if is_device and not os.isatty(stream):  # a terminal that is closed passes for none
            os.dup2(nowhere, stream)
    os.close(nowhere)
