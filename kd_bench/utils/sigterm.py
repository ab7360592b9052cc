"""SIGTERM as an exception, and signals that wait until they are looked at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kd_bench.utils.errors import Terminated


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``: locks and processes end, and the command says that it can go on."""

    def raise_terminated(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def collecting_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM interrupt nothing. Yields the list of those that were received, which grows."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: received.append(got)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
