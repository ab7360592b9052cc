"""SIGTERM as an exception."""

from __future__ import annotations

import os
import signal

import pytest

from kd_bench.utils.errors import Terminated
from kd_bench.utils.sigterm import raising_on_sigterm


def test_sigterm_is_raised_and_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
