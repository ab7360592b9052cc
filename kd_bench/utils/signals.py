"""SIGTERM and SIGHUP as an exception, and signals that wait until they are looked at."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
