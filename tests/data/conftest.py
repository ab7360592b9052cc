import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import kd_bench.data

CACHE = os.environ.get("KD_BENCH_CACHE")
DATA = os.environ.get("KD_BENCH_DATA")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, or finds the user's data sets; all processes import the same code."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KD_BENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(kd_bench.data.__file__).parents[2]))


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of real data sets, with the user's cache."""
    if not DATA:
        pytest.skip("KD_BENCH_DATA is not set, so there are no real images to try")
    if CACHE:
        monkeypatch.setenv("KD_BENCH_CACHE", CACHE)
    yield Path(DATA)
