"""The public names of the package: they are complete, and loaded only on first use."""

from __future__ import annotations

import re
import subprocess
import sys
import types

import pytest

import kd_bench
from kd_bench.methods.base import Method
from kd_bench.types import Batch, Needs, Outputs, Pair


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_public_names() -> None:
    assert (kd_bench.Method, kd_bench.Batch, kd_bench.Outputs) == (Method, Batch, Outputs)
    assert (kd_bench.Pair, kd_bench.Needs) == (Pair, Needs)
    assert isinstance(kd_bench.losses, types.ModuleType) and callable(kd_bench.losses.ikl)
    for name in kd_bench.__all__:
        assert name in dir(kd_bench)
        assert getattr(kd_bench, name) is not None
    assert {"Method", "Batch", "Outputs", "Pair", "Needs", "losses"} <= set(kd_bench.__all__)
    assert {"compare", "run", "load", "distiller", "UserError", "RunFailed"} <= set(kd_bench.__all__)
    for name in ("compare", "run", "load", "distiller"):  # a module of the same name would take its place
        assert isinstance(getattr(kd_bench, name), types.FunctionType)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'kd_bench' has no attribute 'Methods'"):
        _ = kd_bench.Methods
    with pytest.raises(ImportError, match="cannot import name 'Methods'"):
        from kd_bench import Methods  # noqa: F401


def test_names_are_loaded_on_first_use() -> None:
    code = (
        "import sys, kd_bench; print([name for name in sys.modules if name.startswith('kd_bench.')], 'torch' in "
        "sys.modules); from kd_bench import Batch, Needs, Pair; print('torch' in sys.modules); kd_bench.Method; "
        "print('torch' in sys.modules)"
    )
    assert python("-c", code).stdout.split("\n")[:3] == ["[] False", "False", "True"]


def test_import_takes_less_than_50_milliseconds() -> None:
    """The least of three runs, because the times of a busy machine are only ever too long."""
    times = []
    for _ in range(3):
        report = python("-X", "importtime", "-c", "import kd_bench").stderr
        cumulative = re.search(r"\|\s*(\d+) \| kd_bench$", report, re.MULTILINE)
        assert cumulative is not None
        times.append(int(cumulative[1]))
    assert min(times) < 50_000
