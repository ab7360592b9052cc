"""SIGTERM as an exception, and signals that are collected."""

from __future__ import annotations

import os
import signal

import pytest

from kd_bench.utils.errors import Terminated
from kd_bench.utils.sigterm import collecting_signals, raising_on_sigterm


def test_sigterm_is_raised_and_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_collected_signals_interrupt_nothing() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with collecting_signals() as received:
        assert received == []
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received == [signal.SIGINT, signal.SIGTERM]
    assert [signal.getsignal(number) for number in numbers] == before
