"""The lock of an evaluation: one process at a time, whatever another does at the same moment."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from kd_bench.evaluation import lock as locks
from kd_bench.evaluation.lock import evaluation_lock
from kd_bench.utils.errors import RunFailed, UserError


def _patch_flock(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """Calls ``before`` once, before the next file is locked."""
    flock = fcntl.flock
    calls: list[int] = []

    def patched(file: IO[bytes], operation: int) -> None:
        if not calls:
            calls.append(operation)
            before()
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", patched)


def test_a_removed_lock_file_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process ends between the moments at which the second one opens the lock file and locks it."""
    file = tmp_path / "evaluation.json"
    first = evaluation_lock(file)
    first.__enter__()
    _patch_flock(monkeypatch, lambda: first.__exit__(None, None, None))
    with evaluation_lock(file), pytest.raises(RunFailed, match="another process is evaluating this"):
        evaluation_lock(file).__enter__()
    assert not list(tmp_path.glob("*.lock"))


def test_the_end_of_an_evaluation_leaves_the_lock_of_another(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    with evaluation_lock(file):
        file.with_suffix(".lock").unlink()
        file.with_suffix(".lock").write_text("of another process")
    assert file.with_suffix(".lock").exists()


def test_without_locks_the_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with evaluation_lock(tmp_path / "folder" / "evaluation.json"):
        assert (tmp_path / "folder").is_dir()
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"results cannot be written there: (Not a directory|File exists)"):
        evaluation_lock(tmp_path / "file" / "evaluation.json").__enter__()
    (tmp_path / "evaluation.lock").symlink_to(tmp_path / "missing" / "target")
    with pytest.raises(UserError, match="results cannot be written there: No such file or directory"):
        evaluation_lock(tmp_path / "evaluation.json").__enter__()
