"""The folders of a user."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from kd_bench.cli.option_types import path_option
from kd_bench.utils.paths import cache_folder


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KD_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_cache_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kd-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches" / "kd-bench"
    monkeypatch.setenv("KD_BENCH_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_without_a_home_folder_no_folder_named_tilde_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that its system does not know."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"kd-bench-{os.getuid()}"


def test_a_path_on_the_command_line_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bash leaves it as it is in --out=~/runs, and nothing replaces it in KD_BENCH_OUT of a container's image."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_option("--out", "", "KD_BENCH_OUT").parser("~/runs") == tmp_path / "runs"
